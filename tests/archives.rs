//! Archives of data sets on servers, of which members are read in place.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    lab::{LIGHT, Lab, computed},
    proxy::Proxy,
    remote::{HANG, Server, environment, files},
    web::{Answer, Request, serve},
};

const ROWS: &str =
    "select image_id, class, split, label, defect, caption, file_digest, mask[300] from images order by 1";

/// Puts the files below a folder into an archive, by their names below `parent`.
fn pack(folder: &Path, parent: &Path, archive: &Path) {
    fs::create_dir_all(archive.parent().unwrap()).unwrap();
    let name = |file: &Path| file.strip_prefix(parent).unwrap().to_str().unwrap().to_owned();
    let output = fs::File::create(archive).unwrap();
    if archive.extension() == Some("tar".as_ref()) {
        let mut writer = tar::Builder::new(output);
        files(folder).iter().for_each(|file| writer.append_path_with_name(file, name(file)).unwrap());
        writer.finish().unwrap();
        return;
    }
    let mut writer = zip::ZipWriter::new(output);
    for file in files(folder) {
        // Pictures are mostly stored, and text is compressed.
        let method = match file.extension() {
            Some(ending) if ending == "png" => zip::CompressionMethod::Stored,
            _ => zip::CompressionMethod::Deflated,
        };
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(name(&file), options).unwrap();
        writer.write_all(&fs::read(&file).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn archives_on_a_server_make_the_rows_of_their_folder() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--store", "expected", "--set", "images.dataset=mvtec"]);
    let expected = lab.sql("expected", ROWS);
    let members = files(&lab.path("data")).len();
    pack(&lab.path("data"), &lab.path("data"), &lab.path("sets/data.zip"));
    pack(&lab.path("data"), &lab.path("data"), &lab.path("sets/data.tar"));
    // One class lies in an archive, and the other beside it.
    pack(&lab.path("data/gear"), &lab.path("data"), &lab.path("sets/mixed/gear.zip"));
    fs::rename(lab.path("data/tile"), lab.path("sets/mixed/tile")).unwrap();
    let server = Server::start();
    let proxy = Proxy::start(server.address, HANG, Box::new(|_, _| None));
    server.upload(&lab.path("sets"));
    // The next run reads a file again if it has just changed.
    std::thread::sleep(Duration::from_secs(4));
    let with_server = |command: &mut Command| lab.ended(command.envs(environment(proxy.address)));
    let run = |root: &str, store: &str| {
        let set = format!("images.root=s3://bucket/sets/{root}");
        let arguments = ["run", "pipeline.yaml", "--quiet", "--store", store, "--set", "images.dataset=mvtec", "--set"];
        let ended = with_server(&mut lab.command(&[&arguments[..], &[&set]].concat()));
        assert_eq!(ended.code, Some(0), "{root}: {}", ended.stderr);
    };
    // The captions of both classes are read again, and the directory of a ZIP file.
    for (root, most_requests) in [("data.zip", 4), ("data.tar", 2)] {
        let fetched = || proxy.count("GET", root);
        run(root, root);
        assert_eq!(lab.sql(root, ROWS), expected, "{root}");
        let first = fetched();
        assert!(first <= 4 * members, "{root}: {first} requests for {members} members, each hashed and read");
        run(root, root);
        assert_eq!(computed(&lab.events(root)), [("images", 0); 0], "{root}");
        let again = fetched() - first;
        assert!(again <= most_requests, "{root}: {again} requests of a run that has nothing to do");
        let place =
            format!("select count(*) from images where uri like 's3://bucket/sets/{root}/gear/train/good/%.png'");
        assert_eq!(lab.sql(root, &place), ["4"]);
    }
    run("mixed", "mixed");
    assert_eq!(lab.sql("mixed", ROWS), expected);
    let set = ["--set", "images.dataset=mvtec", "--set", "images.root=s3://bucket/sets/mixed"];
    let checked = with_server(&mut lab.command(&[&["data", "check", "pipeline.yaml"], &set[..]].concat()));
    assert!(
        checked.code == Some(0) && checked.stdout.ends_with("  no fault\n"),
        "{}{}",
        checked.stdout,
        checked.stderr
    );
}

/// Answers with a part of a file, or all of it.
fn part(file: &[u8], tag: &str, range: Option<(usize, usize)>) -> Answer {
    let tag = format!("ETag: \"{tag}\"\r\n");
    match range {
        Some((first, last)) => {
            let last = last.min(file.len() - 1);
            let head = format!("{tag}Content-Range: bytes {first}-{last}/{}\r\n", file.len());
            ("206 Partial Content", head, file[first..=last].to_vec())
        }
        None => ("200 OK", tag, file.to_vec()),
    }
}

#[test]
fn error_of_an_archive_on_a_web_server_says_what_would_work() {
    let lab = Lab::new(LIGHT);
    pack(&lab.path("data"), &lab.path("data"), &lab.path("data.zip"));
    let whole = fs::read(lab.path("data.zip")).unwrap();
    let mut broken = whole.clone();
    // A byte of the pixels of the first picture that is stored.
    let picture = whole.windows(4).position(|bytes| bytes == b"IDAT").unwrap() + 20;
    broken[picture] ^= 1;
    let (asked, changed_after) = (Arc::new(AtomicUsize::new(0)), 12);
    let count = asked.clone();
    let server = serve(move |Request { path, range }| match path.as_str() {
        "data.zip" => part(&whole, "1", *range),
        "whole/data.zip" => part(&whole, "1", None),
        "cut/data.zip" => part(&whole[..whole.len() / 2], "1", *range),
        "broken/data.zip" => part(&broken, "1", *range),
        "changed/data.zip" if count.fetch_add(1, Ordering::SeqCst) < changed_after => part(&whole, "1", *range),
        "changed/data.zip" => part(&whole, "2", *range),
        _ => ("404 Not Found", String::new(), Vec::new()),
    });
    let run = |root: &str| {
        let set = format!("images.root={server}/{root}");
        lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--store", "web", "--set", &set])
    };
    let told = |root: &str, words: &str| {
        let ended = run(root);
        assert!(ended.code != Some(0) && ended.stderr.contains(words), "{root}: {words}\n{}", ended.stderr);
    };
    told("whole/data.zip", "an archive is read by parts, for which a web server has to know HTTP's `Range`");
    told("gone/data.zip", "gone/data.zip: it does not exist");
    told("cut/data.zip", "cut/data.zip: invalid Zip archive");
    told("data.tar.xz", "`unxz data.tar.xz` makes a .tar of it, which is read in place");
    told("broken/data.zip", "Invalid checksum");
    told("changed/data.zip", "the archive changed while it was being read; run again");
    assert!(asked.load(Ordering::SeqCst) > changed_after);
    for root in ["changed/data.zip", "data.zip"] {
        let ended = run(root);
        assert_eq!(ended.code, Some(0), "{root}: {}", ended.stderr);
    }
    lab.run(&["--store", "expected"]);
    assert_eq!(lab.sql("web", ROWS), lab.sql("expected", ROWS));

    // An archive that is not read is named where nothing else is found.
    fs::remove_dir_all(lab.path("data")).unwrap();
    fs::create_dir(lab.path("data")).unwrap();
    lab.write("data/mvtec_anomaly_detection.tar.xz", "");
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet"]);
    let words = "mvtec_anomaly_detection.tar.xz: it is compressed as a whole";
    assert!(ended.code == Some(2) && ended.stderr.contains(words), "{}", ended.stderr);
}
