//! Receives photographs: as the body of a request, or as a file of a form.

use std::{io::Write, time::Duration};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{
        FromRequest, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::{HeaderMap, StatusCode, header},
};
use futures::{Stream, StreamExt, TryStreamExt};
use tempfile::NamedTempFile;

use super::answer::Refusal;
use crate::{engine::Digest, vision::decode};

/// The time within which a photograph has to be received.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time and the bytes that are spent on reading a photograph that is refused, so that its client reads the answer.
const POLITENESS: Duration = Duration::from_secs(5);
const POLITE_BYTES: u64 = 64 << 20;
/// The maximum length of a name, in characters.
const LONGEST_NAME: usize = 200;

/// The greatest size of a photograph.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In bytes.
    pub bytes: u64,
    /// In pixels.
    pub pixels: u64,
}

/// A photograph that was received.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) file: NamedTempFile,
    pub(super) digest: Digest,
    pub(super) media_type: &'static str,
    /// The name and the class that a form gave.
    pub(super) name: Option<String>,
    pub(super) class: Option<String>,
}

/// Receives a photograph into a file.
pub(super) async fn receive(request: Request, file: NamedTempFile, limits: Limits) -> Result<Upload, Refusal> {
    let received = tokio::time::timeout(PATIENCE, receive_all(request, file, limits));
    let late = |_| {
        let why = format!("the photograph was not received within {} seconds", PATIENCE.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, why)
    };
    let (file, name, class) = received.await.map_err(late)??;
    let checked = tokio::task::spawn_blocking(move || check(file, limits)).await;
    let (file, digest, media_type) =
        checked.map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))??;
    Ok(Upload { file, digest, media_type, name: name.map(shortened), class })
}

/// Reads what is left of a request that is refused.
pub(super) async fn discard(body: Body) {
    let mut chunks = body.into_data_stream();
    let mut bytes = 0;
    let read = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            bytes += chunk.len() as u64;
            if bytes > POLITE_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(POLITENESS, read).await;
}

type Received = (NamedTempFile, Option<String>, Option<String>);

async fn receive_all(request: Request, mut file: NamedTempFile, limits: Limits) -> Result<Received, Refusal> {
    match kind(request.headers())? {
        Kind::Body => {
            if request.body().size_hint().lower() > limits.bytes {
                discard(request.into_body()).await;
                return Err(too_large(limits));
            }
            let mut chunks = request.into_body().into_data_stream();
            let written = write(&mut chunks, &mut file, limits).await;
            if written.is_err() {
                discard(Body::from_stream(chunks)).await;
            }
            written.map(|()| (file, None, None))
        }
        Kind::Form => form(request, file, limits).await,
    }
}

/// The way in which a photograph is sent.
enum Kind {
    Body,
    Form,
}

fn kind(headers: &HeaderMap) -> Result<Kind, Refusal> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(Kind::Body) };
    let given = given.to_str().unwrap_or_default().to_lowercase();
    if given.starts_with("multipart/form-data") {
        Ok(Kind::Form)
    } else if given.starts_with("image/") || given.starts_with("application/octet-stream") {
        Ok(Kind::Body)
    } else {
        let why = format!(
            "the content type is `{given}`; a photograph as it is with `content-type: image/png` (or image/jpeg, \
             image/bmp, image/tiff, image/webp) would work, or a form with a file (multipart/form-data)"
        );
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
    }
}

/// Reads a form: the first file is the photograph, and the fields `class` and `name` say more about it.
async fn form(request: Request, mut file: NamedTempFile, limits: Limits) -> Result<Received, Refusal> {
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("the form: {}", e.body_text())))?;
    match fields(&mut form, &mut file, limits).await {
        Ok((name, class)) => Ok((file, name, class)),
        Err(refusal) => {
            // Fields that nobody reads are skipped.
            let skip = async { while let Ok(Some(_)) = form.next_field().await {} };
            let _ = tokio::time::timeout(POLITENESS, skip).await;
            Err(refusal)
        }
    }
}

/// Reads the fields of a form, and writes its photograph into a file. Returns name and class.
async fn fields(
    form: &mut Multipart,
    file: &mut NamedTempFile,
    limits: Limits,
) -> Result<(Option<String>, Option<String>), Refusal> {
    let (mut given_name, mut file_name, mut class, mut has_file) = (None, None, None, false);
    while let Some(field) = form.next_field().await.map_err(wrong_form)? {
        match field.name().unwrap_or_default() {
            "class" => set_once(&mut class, "class", short_text(field).await?)?,
            "name" => set_once(&mut given_name, "name", short_text(field).await?)?,
            _ if has_file => {
                let why = "the form has two photographs; send each in a request of its own";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
            }
            _ => {
                file_name = field.file_name().map(str::to_owned);
                write(&mut field.map_err(wrong_form), file, limits).await?;
                has_file = true;
            }
        }
    }
    if has_file {
        return Ok((given_name.or(file_name), class));
    }
    let why = "the form has no photograph; a field such as `image` with a file would work";
    Err(Refusal::new(StatusCode::BAD_REQUEST, why))
}

/// Sets what a field of a form says, which may say it once.
fn set_once(place: &mut Option<String>, name: &str, text: String) -> Result<(), Refusal> {
    match place.replace(text) {
        None => Ok(()),
        Some(_) => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the form has two fields `{name}`; one would work")))
        }
    }
}

fn wrong_form(error: MultipartError) -> Refusal {
    Refusal::new(error.status(), format!("the form: {}", error.body_text()))
}

/// Reads a field of text.
async fn short_text(field: Field<'_>) -> Result<String, Refusal> {
    let mut chunks = field.map_err(wrong_form);
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend(chunk?);
        if bytes.len() > 4 * LONGEST_NAME {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the form: a text is too long"));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes chunks into a file as they come. A chunk goes to the page cache, which takes microseconds.
async fn write<E: Problem>(
    chunks: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    file: &mut NamedTempFile,
    limits: Limits,
) -> Result<(), Refusal> {
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Problem::refusal)?;
        bytes += chunk.len() as u64;
        if bytes > limits.bytes {
            return Err(too_large(limits));
        }
        let cannot =
            |e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the photograph cannot be stored: {e}"));
        file.write_all(&chunk).map_err(cannot)?;
    }
    Ok(())
}

fn too_large(limits: Limits) -> Refusal {
    let why = format!("the photograph has more than {} bytes, which `--max-bytes` permits", limits.bytes);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why)
}

/// The error of a body.
trait Problem {
    fn refusal(self) -> Refusal;
}

impl Problem for axum::Error {
    fn refusal(self) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the photograph was not received: {self}"))
    }
}

impl Problem for Refusal {
    fn refusal(self) -> Refusal {
        self
    }
}

/// Refuses what is no picture by its header, or has too many pixels, before anything decodes it.
fn check(mut file: NamedTempFile, limits: Limits) -> Result<(NamedTempFile, Digest, &'static str), Refusal> {
    let cannot = |e: std::io::Error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the photograph cannot be read again: {e}"))
    };
    file.flush().map_err(cannot)?;
    let reader = std::io::BufReader::new(file.reopen().map_err(cannot)?);
    let header = decode::header(reader).map_err(|e| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))?;
    let (width, height) = header.size;
    if u64::from(width) * u64::from(height) > limits.pixels {
        let why = format!(
            "the photograph has {width}x{height} pixels, more than the {} that `--max-pixels` permits",
            limits.pixels
        );
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let digest = Digest::of_file(file.path()).map_err(cannot)?;
    Ok((file, digest, header.media_type))
}

/// Returns a name without its folders, cut to the longest that is kept.
pub(super) fn shortened(name: String) -> String {
    let file = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default();
    file.chars().filter(|character| !character.is_control()).take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_that_of_the_file_alone() {
        let of = |name: &str| shortened(name.to_owned());
        assert_eq!(of("C:\\photos\\a b.png"), "a b.png");
        assert_eq!(of("/etc/../nut\u{7}.jpg"), "nut.jpg");
        assert_eq!(of(&"x".repeat(500)).len(), LONGEST_NAME);
        assert_eq!((of("a/"), of("")), ("a".into(), String::new()));
    }
}
