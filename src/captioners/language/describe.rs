//! The operator of captioners with a model.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{AsArray, Float32Array, StringArray, UInt32Array},
    datatypes::UInt8Type,
};
use image::RgbImage;
use rayon::prelude::*;

use super::{
    asking::{Picture, Settings},
    model::{Answer, Question, Told, VisionLanguageModel},
    pictures::Pictures,
};
use crate::{
    captioners::lookup::IMAGES,
    engine::{
        Digest, Error, Result,
        source::Sources,
        stage::{Batch, Operator, Rows, Sink},
        store::tensor_shape,
    },
    models::language::generate::{Finish, Speed},
    tables::images::{CLASS, FILE_DIGEST, PIXELS, URI},
    vision::decode,
};

/// The number of photographs that are decoded ahead, and asked about in the order of their sizes.
const AHEAD: usize = 32;
/// The time after which captions are committed: a crash loses no more of them.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// The interval at which the speed is reported.
const RATE_EVERY: Duration = Duration::from_secs(2);
/// The number of answers that are kept for equal photographs of later tasks.
const KEPT: usize = 100_000;

/// Asks a model about each image, and about equal photographs once.
pub(super) struct Describer {
    table: Table,
    model: Box<dyn VisionLanguageModel>,
    sources: Sources,
    /// Answers of this process, by photograph and question.
    known: HashMap<Digest, Answer>,
    is_announced: bool,
}

/// Reads rows of images and writes rows of captions.
struct Table {
    /// The name of the model, as it stands in the column `model`.
    name: &'static str,
    settings: Settings,
}

/// A row whose photograph has to be described.
struct Row {
    id: String,
    text: String,
    place: Place,
}

/// The place of a row's photograph.
enum Place {
    /// A file, and the digest of its content when it was listed.
    File {
        uri: Option<String>,
        digest: Option<String>,
    },
    Pixels(RgbImage),
}

/// The rows that ask the same about equal photographs.
struct Group {
    key: Digest,
    rows: Vec<Row>,
}

/// The state of a task, which the iterator of questions and the answers share.
struct Work<'a, 'b> {
    out: &'a mut Sink<'b>,
    /// Groups that are not asked about yet.
    waiting: VecDeque<Group>,
    /// Questions whose photographs are decoded.
    ready: VecDeque<(Group, RgbImage)>,
    /// The groups that were asked about, by the number of the question; `None` after the answer.
    asked: Vec<Option<Group>>,
    rate: Rate,
}

/// The speed at which tokens are written.
struct Rate {
    /// The time of the last report.
    said: Instant,
    /// The tokens written before it.
    before: usize,
    /// The tokens and times of the task.
    speed: Speed,
}

impl Describer {
    pub(super) fn new(
        name: &'static str,
        settings: Settings,
        model: Box<dyn VisionLanguageModel>,
        sources: Sources,
    ) -> Self {
        Self { table: Table { name, settings }, model, sources, known: HashMap::new(), is_announced: false }
    }
}

impl Table {
    /// Returns the rows of a batch.
    fn rows(&self, batch: &Batch) -> Result<Vec<Row>> {
        let class = match self.settings.prompt.has_class() {
            true => Some(batch.column(IMAGES, CLASS)?.as_string::<i32>()),
            false => None,
        };
        let text = |row: usize| self.settings.question(class.map_or("", |class| class.value(row)));
        let row = |(row, (id, place)): (usize, (&String, Place))| Row { id: id.clone(), text: text(row), place };
        Ok(batch.ids.iter().zip(self.places(batch)?).enumerate().map(row).collect())
    }

    fn places(&self, batch: &Batch) -> Result<Vec<Place>> {
        match self.settings.image {
            Picture::File => {
                let [uris, digests] = [URI, FILE_DIGEST].map(|column| batch.column(IMAGES, column));
                let (uris, digests) = (uris?.as_string::<i32>(), digests?.as_string::<i32>());
                let place = |(uri, digest): (Option<&str>, Option<&str>)| Place::File {
                    uri: uri.map(str::to_owned),
                    digest: digest.map(str::to_owned),
                };
                Ok(uris.iter().zip(digests).map(place).collect())
            }
            Picture::Pixels => {
                let schema = batch.rows(IMAGES)?.schema();
                let shape = schema.field_with_name(PIXELS).ok().and_then(tensor_shape).unwrap_or_default();
                let [height, width, 3] = shape[..] else {
                    return Err(Error::Stage(format!("`{PIXELS}` has the shape {shape:?} and not [H, W, 3]")));
                };
                let pixels = batch.column(IMAGES, PIXELS)?.as_fixed_size_list();
                let picture = |row: usize| {
                    let values = pixels.value(row).as_primitive::<UInt8Type>().values().to_vec();
                    RgbImage::from_raw(width as u32, height as u32, values).map(Place::Pixels)
                };
                let wrong = || Error::Stage(format!("`{PIXELS}` has too few values"));
                (0..batch.len()).map(|row| picture(row).ok_or_else(wrong)).collect()
            }
        }
    }

    fn write(&self, out: &mut Sink<'_>, group: &Group, answer: &Answer) -> Result<()> {
        let count = group.rows.len();
        let finish = match answer.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        for row in &group.rows {
            if answer.finish == Finish::Length {
                let most = self.settings.max_new_tokens;
                out.note(
                    &format!("the caption is cut, since it has not ended after {most} tokens (`max_new_tokens`)"),
                    &row.id,
                );
            } else if answer.text.is_empty() {
                out.note("the model wrote nothing", &row.id);
            }
        }
        out.write_columns(vec![
            Arc::new(StringArray::from_iter_values(group.rows.iter().map(|row| &row.id))),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&answer.text, count))),
            Arc::new(UInt32Array::from_value(answer.tokens as u32, count)),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(finish, count))),
            Arc::new(StringArray::from_iter_values(group.rows.iter().map(|row| &row.text))),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(self.name, count))),
            Arc::new(Float32Array::from_iter(std::iter::repeat_n(answer.yes, count))),
        ])
    }
}

/// Returns the photograph of a row.
fn photograph(row: &mut Row, bytes: Option<Result<bytes::Bytes>>) -> Result<RgbImage, String> {
    match &mut row.place {
        Place::Pixels(picture) => Ok(std::mem::take(picture)),
        Place::File { uri, digest } => {
            let (Some(uri), Some(bytes)) = (uri.as_ref(), bytes) else {
                return Err("the image has no file (`uri` is null); `image: pixels` shows the model its pixels".into());
            };
            let bytes = bytes.map_err(|e| e.to_string())?;
            if digest.as_ref().is_some_and(|digest| *digest != Digest::of(&bytes).to_string()) {
                return Err(format!("{uri} changed since the images were read; run again"));
            }
            decode::photograph(&bytes, true).map(|photograph| photograph.image).map_err(|e| format!("{uri}: {e}"))
        }
    }
}

/// Decodes the photographs of the next groups; the rows of those that cannot be read fail.
fn decode(sources: &Sources, pictures: Pictures, work: &mut Work<'_, '_>) -> Result<()> {
    let count = work.waiting.len().min(AHEAD);
    let mut groups: Vec<Group> = work.waiting.drain(..count).collect();
    let uri = |group: &Group| match &group.rows[0].place {
        Place::File { uri, .. } => uri.clone(),
        Place::Pixels(_) => None,
    };
    let uris: Vec<Option<String>> = groups.iter().map(uri).collect();
    let mut read = sources.read_all(&uris.iter().flatten().cloned().collect::<Vec<_>>()).into_iter();
    let bytes: Vec<Option<Result<bytes::Bytes>>> =
        uris.iter().map(|uri| uri.as_ref().and_then(|_| read.next())).collect();
    let decoded: Vec<Result<RgbImage, String>> =
        groups.par_iter_mut().zip(bytes).map(|(group, bytes)| photograph(&mut group.rows[0], bytes)).collect();
    let mut ready = Vec::new();
    for (group, photograph) in groups.into_iter().zip(decoded) {
        match photograph {
            Ok(photograph) => ready.push((group, photograph)),
            Err(message) => fail(work.out, &group, &message)?,
        }
    }
    ready.sort_by_key(|(_, photograph)| pictures.count(photograph.width(), photograph.height()));
    work.ready.extend(ready);
    Ok(())
}

fn fail(out: &mut Sink<'_>, group: &Group, message: &str) -> Result<()> {
    group.rows.iter().try_for_each(|row| out.fail(&row.id, message))
}

/// Groups rows that ask the same about equal photographs, in the order of the first of each.
fn groups(rows: Vec<Row>) -> Vec<Group> {
    let mut at: HashMap<Digest, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let photograph = match &row.place {
            // A file without a digest is like no other.
            Place::File { uri, digest } => Digest::of(digest.as_ref().or(uri.as_ref()).unwrap_or(&row.id).as_bytes()),
            Place::Pixels(picture) => {
                let (width, height) = picture.dimensions();
                let mut hasher = blake3::Hasher::new();
                hasher.update(&width.to_le_bytes()).update(&height.to_le_bytes()).update(picture);
                Digest::of(hasher.finalize().as_bytes())
            }
        };
        let key = Digest::of(&[photograph.as_bytes().as_slice(), row.text.as_bytes()].concat());
        match at.get(&key) {
            Some(group) => groups[*group].rows.push(row),
            None => {
                at.insert(key, groups.len());
                groups.push(Group { key, rows: vec![row] });
            }
        }
    }
    groups
}

impl Operator for Describer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let Self { table, model, sources, known, is_announced } = self;
        out.commit_every(COMMIT_EVERY);
        if !std::mem::replace(is_announced, true) {
            out.log(model.memory());
        }
        let mut all = Vec::new();
        while let Some(batch) = rows.next(usize::MAX)? {
            all.extend(table.rows(&batch)?);
        }
        let mut texts: Vec<String> = all.iter().map(|row| row.text.clone()).collect();
        texts.sort_unstable();
        texts.dedup();
        let mut waiting = VecDeque::new();
        for group in groups(all) {
            match known.get(&group.key) {
                Some(answer) => table.write(out, &group, answer)?,
                None => waiting.push_back(group),
            }
        }
        let pictures = model.pictures();
        let rate = Rate { said: Instant::now(), before: 0, speed: Speed::default() };
        let work = RefCell::new(Work { out, waiting, ready: VecDeque::new(), asked: Vec::new(), rate });
        let mut questions = std::iter::from_fn(|| {
            let mut work = work.borrow_mut();
            while work.ready.is_empty() && !work.waiting.is_empty() {
                if let Err(error) = decode(sources, pictures, &mut work) {
                    return Some(Err(error));
                }
            }
            let (group, photograph) = work.ready.pop_front()?;
            let question = Question { key: group.key.to_string(), photograph, text: group.rows[0].text.clone() };
            work.asked.push(Some(group));
            Some(Ok(question))
        });
        model.answer(&texts, &mut questions, &mut |told| {
            let Work { out, asked, rate, .. } = &mut *work.borrow_mut();
            let mut group = |number: usize| asked.get_mut(number).and_then(Option::take);
            match told {
                Told::Answer { number, answer } => {
                    let Some(group) = group(number) else { return Ok(()) };
                    table.write(out, &group, &answer)?;
                    if known.len() < KEPT {
                        known.insert(group.key, answer);
                    }
                    Ok(())
                }
                Told::Unanswered { number, reason } => group(number).map_or(Ok(()), |group| fail(out, &group, &reason)),
                Told::Step(speed) => {
                    rate.say(speed, out);
                    out.check_interrupted()
                }
            }
        })?;
        let Work { out, rate, .. } = work.into_inner();
        if let Some(sentence) = rate.sentence() {
            out.log(sentence);
        }
        Ok(())
    }
}

impl Rate {
    /// Reports the speed since the last report.
    fn say(&mut self, speed: Speed, out: &mut Sink<'_>) {
        self.speed = speed;
        let seconds = self.said.elapsed().as_secs_f64();
        if seconds < RATE_EVERY.as_secs_f64() {
            return;
        }
        out.figure(format!("{:.0} tokens/s", (speed.decoded_tokens - self.before) as f64 / seconds));
        (self.said, self.before) = (Instant::now(), speed.decoded_tokens);
    }

    /// Returns a sentence about the task; `None` if nothing was written.
    fn sentence(&self) -> Option<String> {
        let Speed { prompt_tokens, prefill, decoded_tokens, decode } = self.speed;
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-3);
        let read = match prompt_tokens {
            0 => String::new(),
            _ => format!(", after {prompt_tokens} read at {:.0} tokens/s", rate(prompt_tokens, prefill)),
        };
        (decoded_tokens > 0).then(|| {
            let written = rate(decoded_tokens, decode);
            format!("{decoded_tokens} tokens written at {written:.1} tokens/s{read}")
        })
    }
}
