//! The requests that the server answers.

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    answer::{Health, Images, Refusal, json},
    archive::Kept,
    openapi, page,
    pictures::{self, Picture, SIDES},
    queue::{Job, Reply},
    selection::Selection,
    shared::Shared,
    upload,
};
use crate::{
    engine::{Error, Hasher},
    telemetry::Span,
};

/// The paths that are answered, for messages.
const PATHS: &str = "POST /v1/predict, GET /, /v1/images, /v1/images/ID, /health, /metrics, /openapi.json";
/// The path of photographs to judge.
const PREDICT: &str = "/v1/predict";
/// The policy for browsers: nothing from elsewhere, no script.
const POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
/// The seconds after which a client comes again whose photograph finds a full queue, at least and at most.
const RETRY: (f64, f64) = (1., 60.);

/// Returns the routes of a server.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/style.css", get(async || ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE)))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(description))
        .route(PREDICT, post(predict))
        .route("/v1/images", get(images))
        .route("/v1/images/{id}", get(image))
        .route("/v1/images/{id}/{file}", get(picture))
        .fallback(async || {
            Refusal::new(StatusCode::NOT_FOUND, format!("there is no such path; the server answers {PATHS}"))
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("the path takes another method; the server answers {PATHS}"),
            )
        })
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(shared.clone(), guarded))
        .with_state(shared)
}

/// Refuses requests without the token or from foreign pages, counts answers, and adds the headers that all of them carry.
async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let refusal = refusal(&shared, &request);
    let mut response = match refusal {
        Some(refusal) => {
            upload::discard(request.into_body()).await;
            refusal.into_response()
        }
        None => next.run(request).await,
    };
    shared.figures.answered(response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Returns the reason why a request is not answered.
fn refusal(shared: &Shared, request: &Request) -> Option<Refusal> {
    let text = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let refused = |message: &str| Some(Refusal::new(StatusCode::FORBIDDEN, message));
    match shared.token {
        Some(token) => {
            let is_open = request.uri().path() == "/health";
            if !is_open && !text(header::AUTHORIZATION).is_some_and(|given| token.is_in(given)) {
                let why =
                    "the request carries no token, or another one; the header `Authorization: Bearer TOKEN` would work";
                return Some(Refusal::new(StatusCode::UNAUTHORIZED, why));
            }
        }
        // A page of another server could reach this one through a name of its own that leads here.
        None => {
            if text(header::HOST).is_some_and(|host| !is_address(host)) {
                return refused(
                    "a server without a token is reached by its address or as localhost; --token-file gives it one",
                );
            }
        }
    }
    let is_foreign = match text(header::HeaderName::from_static("sec-fetch-site")) {
        Some(site) => !["same-origin", "none"].contains(&site),
        // Older browsers say only from where a page comes.
        None => text(header::ORIGIN).is_some_and(|origin| !is_own(origin, text(header::HOST))),
    };
    if *request.method() == Method::POST && is_foreign {
        return refused("a page of another server may not send photographs here");
    }
    None
}

/// Returns true if a page of this origin, such as `http://127.0.0.1:8080`, is one of the host that a request is sent to.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
}

/// Returns true for the address of a machine, or `localhost`, with or without a port.
fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// The parameters of a request, after the `?`.
struct Parameters<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read = Query::from_request_parts(parts, state).await;
        let wrong = |e: QueryRejection| {
            let why = e.body_text();
            let why = why.strip_prefix("Failed to deserialize query string: ").unwrap_or(&why);
            Refusal::new(StatusCode::BAD_REQUEST, format!("after the `?`: {why}"))
        };
        read.map(|Query(value)| Self(value)).map_err(wrong)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    class: Option<String>,
    name: Option<String>,
}

/// Judges a photograph.
async fn predict(
    State(shared): State<Arc<Shared>>,
    Parameters(about): Parameters<About>,
    request: Request,
) -> Result<Response, Refusal> {
    let mut span = Span::request("POST", PREDICT);
    let answer = judged(&shared, about, request).await;
    let code = answer.as_ref().map_or_else(|refusal| refusal.status, Response::status);
    span.set("http.response.status_code", code.as_u16().into());
    if code.is_server_error() {
        span.failed(&code);
    }
    answer
}

/// Answers with the verdict on a photograph.
async fn judged(shared: &Shared, about: About, request: Request) -> Result<Response, Refusal> {
    let began = Instant::now();
    let Some(place) = shared.queue.place() else {
        upload::discard(request.into_body()).await;
        return Err(full(shared));
    };
    let cannot = |e: std::io::Error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the photograph cannot be stored: {e}"))
    };
    let file = shared.archive.receive().map_err(cannot)?;
    let received = upload::receive(request, file, shared.limits).await?;
    let wrong_class = |error: Error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string());
    let class = about.class.or(received.class).filter(|class| !class.is_empty());
    let class = shared.inspector.class(class.as_deref(), "?class=").map_err(wrong_class)?;
    shared.inspector.check_class(&class).map_err(wrong_class)?;
    let id = Hasher::new("photograph").field(class.as_bytes()).field(received.digest.as_bytes()).finish().to_string();
    let kept = match shared.archive.get(&id) {
        Some(kept) => kept,
        None => {
            let (answer, answered) = oneshot::channel();
            let name = about.name.map(upload::shortened).or(received.name).filter(|name| !name.is_empty());
            let job = Job {
                id,
                class,
                name,
                digest: received.digest,
                media_type: received.media_type,
                file: received.file,
                reply: Reply { answer, place },
            };
            let ending = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending");
            if !shared.queue.put(job) {
                return Err(ending());
            }
            answered.await.map_err(|_| ending())??
        }
    };
    shared.figures.took(began.elapsed());
    Ok(json(&kept.answer))
}

/// Refuses a photograph that finds a full queue, with the time in which the queue is likely to be judged.
fn full(shared: &Shared) -> Refusal {
    let limit = shared.queue.limit();
    let seconds = shared.now.seconds_per_image().unwrap_or_default() * limit as f64;
    let seconds = seconds.ceil().clamp(RETRY.0, RETRY.1) as u64;
    Refusal::busy(format!("the queue of {limit} photographs is full; come again in {seconds} s"), seconds)
}

async fn images(State(shared): State<Arc<Shared>>, Parameters(selection): Parameters<Selection>) -> Response {
    let selected = selection.of(&shared);
    json(&Images { total: selected.total, images: selected.shown.iter().map(|kept| kept.answer.clone()).collect() })
}

fn found(shared: &Shared, id: &str) -> Result<Arc<Kept>, Refusal> {
    shared.archive.get(id).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "the server keeps no such photograph; GET /v1/images lists those that it keeps",
        )
    })
}

async fn image(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Response, Refusal> {
    Ok(json(&found(&shared, &id)?.answer))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    side: Option<u32>,
}

async fn picture(
    State(shared): State<Arc<Shared>>,
    Path((id, file)): Path<(String, String)>,
    Parameters(Size { side }): Parameters<Size>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let kept = found(&shared, &id)?;
    let unknown = || {
        let why = format!(
            "there is no picture `{file}`; there are photograph, map.png, overlay.png, mask.png and nearest.png"
        );
        Refusal::new(StatusCode::NOT_FOUND, why)
    };
    let picture = Picture::of(&file).ok_or_else(unknown)?;
    if side.is_some_and(|side| !SIDES.contains(&side)) {
        let why = format!("`side` is a number of pixels from {} to {}", SIDES.start(), SIDES.end());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    // The photograph, the inspector and the size of the picture determine it.
    let tag = format!("\"{}-{}-{}\"", kept.inspector, file, side.unwrap_or(0));
    let is_known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let caching = [(header::ETAG, tag), (header::CACHE_CONTROL, "private, no-cache".to_owned())];
    if is_known {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let failed =
        |e: &dyn std::fmt::Display| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the picture: {e}"));
    let turn = shared.drawing.clone().acquire_owned().await.map_err(|e| failed(&e))?;
    let draw = move || {
        let _turn = turn;
        pictures::draw(&shared, &kept, picture, side)
    };
    let drawn = tokio::task::spawn_blocking(draw).await;
    let (media_type, bytes) = drawn.map_err(|e| failed(&e))??;
    Ok((caching, [(header::CONTENT_TYPE, media_type)], Body::from(bytes)).into_response())
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    json(&Health {
        status: "ok",
        pipeline: shared.pipeline.clone(),
        model: shared.inspector.model().to_owned(),
        queue: shared.queue.length(),
        queue_limit: shared.queue.limit(),
    })
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.figures.text(shared.queue.length(), shared.queue.limit());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn description(State(shared): State<Arc<Shared>>) -> Response {
    let classes: Vec<String> = shared.inspector.classes().iter().cloned().collect();
    json(&openapi::description(&shared.pipeline, &classes, shared.token.is_some()))
}

async fn overview(
    State(shared): State<Arc<Shared>>,
    Parameters(selection): Parameters<Selection>,
) -> Result<Response, Refusal> {
    // The page reads the logs of runs from the store, which blocks.
    let written = tokio::task::spawn_blocking(move || page::html(&shared, &selection)).await;
    let failed = |e: &dyn std::fmt::Display| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the page: {e}"));
    Ok(Html(written.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_told_from_a_name() {
        for host in ["127.0.0.1:8080", "127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:8080", "[::1]", "10.0.0.7:80"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "", "[evil]", "127.0.0.1.evil.example"] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn page_of_the_server_is_told_from_others() {
        let host = Some("127.0.0.1:8080");
        assert!(is_own("http://127.0.0.1:8080", host) && is_own("http://LOCALHOST:1", Some("localhost:1")));
        for origin in ["null", "", "http://127.0.0.1:8081", "http://evil.example", "127.0.0.1:8080"] {
            assert!(!is_own(origin, host), "{origin}");
        }
        assert!(!is_own("http://127.0.0.1:8080", None));
    }
}
