//! `vlmdiff caption`

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{
    EXIT_DONE, EXIT_SKIPPED,
    run::{SAVED, stop_at_signals, worker_program},
    text::{lines, print},
};
use crate::{
    driver::{Progress, default_threads, device},
    engine::{
        Digest, Error, Stop,
        pipeline::{self, Selection},
        run,
        run::{Settings, Workers},
        source::Sources,
        store::Store,
    },
    query::{self, Session},
    stages,
    tables::{captions::CAPTION, column::text, images::IMAGE_ID},
};

/// Describe photographs by a vision-language model.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff caption nut.png --model internvl2-1b
  vlmdiff caption photos/*.jpg --model internvl2-8b --weights WEIGHTS --set max_new_tokens=60
  vlmdiff caption nut.png --model internvl2-1b --prompt \"Is the {class} broken?\" --class nut")]
pub(super) struct Caption {
    /// The photographs.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// The model: a value of `model` of the stage `caption`, such as internvl2-1b.
    #[arg(long)]
    model: String,
    /// The folder of its weights. Default: where `vlmdiff models fetch MODEL` puts them.
    #[arg(long)]
    weights: Option<String>,
    /// The question: pd, paper, yes-no and others by name, or any text. Default: the authors'.
    #[arg(long)]
    prompt: Option<String>,
    /// The class of the photographs, for `{class}` in the question.
    #[arg(long, default_value = "")]
    class: String,
    /// Set another parameter of the stage `caption`, such as max_new_tokens=60. May be given several times.
    #[arg(long = "set", value_name = "PARAMETER=VALUE")]
    sets: Vec<String>,
    /// The device to compute on: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
    /// The number of photographs that are described at once. Default: up to 8, as many as fit into memory.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Print only captions.
    #[arg(short, long)]
    quiet: bool,
}

impl Caption {
    pub(super) fn run(self) -> Result<u8> {
        let folder = tempfile::tempdir()?;
        let rows = folder.path().join("photographs.jsonl");
        fs::write(&rows, self.rows()?)?;
        let mut with = json!({ "model": self.model });
        let given = [("weights", &self.weights), ("prompt", &self.prompt)];
        for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            with[name] = json!(value);
        }
        let texts = json!({ "uri": "utf8", "file_digest": "utf8", "class": "utf8" });
        let pipeline = json!({
            "name": "caption",
            "tables": {
                "photographs": { "stage": "read", "with": { "path": utf8(&rows)?, "id": "image_id", "types": texts } },
                "captions": { "stage": "caption", "from": { "images": "photographs" }, "on_error": "skip", "with": with },
            },
        });
        let sets: Vec<String> = self.sets.iter().map(|set| format!("captions.{set}")).collect();
        let document = pipeline.to_string();
        let tables = &query::TABLES_OF_SQL;
        let parsed = pipeline::parse("the command line", "caption", &document, stages::KINDS, tables, &sets, &|_| None);
        let pipeline = parsed.map_err(|error| match error {
            // The document has lines that nobody has written.
            Error::Pipeline { message, .. } => Error::Input(message),
            other => other,
        })?;
        let store = Store::open(&folder.path().join("store").to_string_lossy())?;
        let stop = Stop::default();
        let settings = Settings {
            device: self.device.clone(),
            batch_size: self.batch_size.map(|rows| rows as usize),
            verify: false,
        };
        let workers = Workers::new(&store, worker_program()?, vec![settings.clone()], default_threads(), &stop);
        let options = run::Options {
            settings,
            task_rows: None,
            save_every: Duration::MAX,
            tables: Selection::default().of(&pipeline)?,
            overrides: Default::default(),
            stop: stop.clone(),
            verify: false,
            git_commit: None,
            host: String::new(),
            device: self.device.clone(),
            judges_by: None,
        };
        // The table of photographs is a means, of which people need not hear.
        let mut progress = Progress::new(&BTreeSet::from(["captions".to_owned()]), lines(self.quiet));
        stop_at_signals(&store, &stop, SAVED, progress.speaker())?;
        let summary = run::run(&pipeline, &store, &Sources::default(), &options, &workers, &mut |event| {
            if event.table() == Some("captions") {
                progress.show(event);
            }
        })?;
        self.print(&store)?;
        Ok(if summary.errors > 0 { EXIT_SKIPPED } else { EXIT_DONE })
    }

    /// Returns a row per photograph, as JSON lines.
    fn rows(&self) -> Result<String> {
        let mut rows = String::new();
        for (number, image) in self.images.iter().enumerate() {
            let cannot = |e: std::io::Error| Error::Input(format!("cannot read {}: {e}", image.display()));
            let path = std::path::absolute(image).map_err(cannot)?;
            let digest = Digest::of(&fs::read(&path).map_err(cannot)?);
            let id = format!("{number:06} {}", image.display());
            let row =
                json!({ "image_id": id, "uri": utf8(&path)?, "file_digest": digest.to_string(), "class": self.class });
            rows += &format!("{row}\n");
        }
        Ok(rows)
    }

    /// Prints the captions in the order of the photographs; their names too, if there are several, from which the further
    /// lines of a caption are set off.
    fn print(&self, store: &Store) -> Result<()> {
        let session = Session::open(store, None)?;
        let (_, batches) = session.query(&format!("select image_id, {CAPTION} from captions order by image_id"))?;
        for batch in batches {
            let (ids, captions) = (text(&batch, IMAGE_ID)?, text(&batch, CAPTION)?);
            for (id, caption) in ids.iter().zip(captions.iter()) {
                let (id, caption) = (id.unwrap_or_default(), caption.unwrap_or_default());
                let name = id.split_once(' ').map_or(id, |(_, name)| name);
                let named = || format!("{name}: {}", caption.replace('\n', "\n  "));
                print(if self.images.len() == 1 { caption.to_owned() } else { named() })?;
            }
        }
        Ok(())
    }
}

/// Returns a path as the text that tables have of it.
///
/// # Errors
/// [`Error::Input`] if it is not UTF-8.
fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| {
        Error::Input(format!("the path {} is not UTF-8; a link to it with another name would work", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn path_that_is_not_utf8_is_named() {
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        assert_eq!(utf8(path("a/nüt.png".as_bytes())).unwrap(), "a/nüt.png");
        let told = utf8(path(b"a/n\xfct.png")).unwrap_err().to_string();
        assert!(told.contains("a/n\u{fffd}t.png is not UTF-8"), "{told}");
    }
}
