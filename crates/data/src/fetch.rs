//! Downloads of published data sets: explicit, resumable, checked, and atomic.

use std::fs::TryLockError;
use std::io::{self, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;
use ureq::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, RANGE};

use crate::catalog::{Archive, CatalogEntry};
use crate::image_set::hexadecimal;

/// How often one address is tried again without a single new byte before the next is tried.
const RETRIES: usize = 2;

/// A server that is silent for this long has gone.
const SILENCE: Duration = Duration::from_secs(30);

/// What can go wrong when a data set is downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The data set has no plain download.
    #[error("{dataset} cannot be downloaded; {how_to_get}")]
    NotFetchable {
        /// Its name.
        dataset: &'static str,
        /// What the user can do instead.
        how_to_get: String,
    },
    /// The data set's folder is there, but files of it are not.
    #[error("{} is there without {}; move it away to download the data set", path.display(), missing.join(", "))]
    Exists {
        /// The folder.
        path: PathBuf,
        /// The files it lacks.
        missing: Vec<String>,
    },
    /// Another process downloads the same data set to the same place.
    #[error("another process is downloading to {}", path.display())]
    Busy {
        /// The folder of unfinished downloads.
        path: PathBuf,
    },
    /// The progress callback asked to stop; the next call goes on from here.
    #[error("the download was interrupted")]
    Interrupted,
    /// No server could be reached, or all broke off.
    #[error("{url} cannot be downloaded")]
    Network {
        /// The last address tried.
        url: String,
        /// What went wrong there.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server answers, but does not give the file.
    #[error("{url} cannot be downloaded: the server answers {status}")]
    Status {
        /// The last address tried.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The file is not the published one. What was downloaded of it has been deleted.
    #[error("{url} has {quantity} {found}, expected {expected}")]
    WrongFile {
        /// Where it came from.
        url: String,
        /// `SHA-256` or `size`.
        quantity: &'static str,
        /// What was found.
        found: String,
        /// What is published.
        expected: String,
    },
    /// An archive does not hold what it should.
    #[error("{file_name} does not hold {}", missing.join(", "))]
    Archive {
        /// The archive.
        file_name: String,
        /// Files it should hold.
        missing: Vec<String>,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FetchError {
    /// Whether there seems to be no network, so that a caller may do without the data set.
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Network { .. })
    }
}

/// Downloads a data set to its folder below `into` and returns that folder; if it is there and complete, nothing
/// happens.
///
/// `progress` is told the bytes downloaded so far and those there are in all; [`ControlFlow::Break`] stops. Unfinished
/// downloads stay in a hidden folder beside the data set's, from where the next call resumes, even after `kill -9`.
/// Files are compared with their published size and SHA-256 before they are unpacked, and the data set's folder appears
/// all at once when it is complete. A file with the wrong checksum is deleted.
///
/// # Errors
///
/// Those of [`FetchError`].
pub fn fetch(
    entry: &CatalogEntry,
    into: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<PathBuf, FetchError> {
    if !entry.is_fetchable() {
        return Err(FetchError::NotFetchable { dataset: entry.name, how_to_get: entry.how_to_get() });
    }
    let target = into.join(entry.folder);
    if target.exists() {
        let missing = entry.missing_files(&target);
        return if missing.is_empty() { Ok(target) } else { Err(FetchError::Exists { path: target, missing }) };
    }
    let is_new = !into.exists();
    let staging = Staging::open(into.join(format!(".{}.partial", entry.folder)))?;
    let result = fetch_to(entry, &staging.path, &target, progress);
    staging.close(result.is_ok());
    if is_new {
        // Goes only if nothing was left in it.
        let _ = fs_err::remove_dir(into);
    }
    result.map(|()| target)
}

fn fetch_to(
    entry: &CatalogEntry,
    staging: &Path,
    target: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), FetchError> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(10)))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("patchdoor/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let total = entry.archives.iter().map(|archive| archive.size).sum();
    let mut before = 0;
    for archive in &entry.archives {
        let mut progress = |bytes| progress(before + bytes, total);
        download(&agent, archive, &staging.join(&archive.file_name), &mut progress)?;
        before += archive.size;
    }

    let unpacked = staging.join("unpacked");
    if unpacked.exists() {
        fs_err::remove_dir_all(&unpacked)?;
    }
    let complete = unpacked.join(entry.folder);
    fs_err::create_dir_all(&complete)?;
    for archive in &entry.archives {
        let file = staging.join(&archive.file_name);
        if archive.unpack {
            unpack(&file, &unpacked)?;
        } else {
            fs_err::rename(&file, complete.join(&archive.file_name))?;
        }
    }
    let missing = entry.missing_files(&complete);
    if !missing.is_empty() {
        let file_name = entry.archives[0].file_name.clone();
        return Err(FetchError::Archive { file_name, missing });
    }
    fs_err::rename(complete, target)?;
    Ok(())
}

/// Folder of what is not finished, held by one process at a time.
struct Staging {
    path: PathBuf,
    lock: fs_err::File,
}

impl Staging {
    fn open(path: PathBuf) -> Result<Self, FetchError> {
        fs_err::create_dir_all(&path)?;
        let lock = fs_err::File::create(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock }),
            Err(TryLockError::WouldBlock) => Err(FetchError::Busy { path }),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Removes the folder if the data set is complete, or if there is nothing to resume.
    fn close(self, is_complete: bool) {
        let unpacked = self.path.join("unpacked");
        if unpacked.exists() {
            // What stays behind costs space, and the next call removes it; the result is more important than this.
            let _ = fs_err::remove_dir_all(unpacked);
        }
        let is_resumable = fs_err::read_dir(&self.path)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.metadata().is_ok_and(|file| file.len() > 0)));
        if is_complete || !is_resumable {
            let _ = fs_err::remove_dir_all(&self.path);
        }
        drop(self.lock);
    }
}

/// Downloads one file to `path`, going on where an earlier attempt broke off, and checks it.
fn download(
    agent: &ureq::Agent,
    archive: &Archive,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), FetchError> {
    let mut error = None;
    for url in &archive.urls {
        let mut retries = RETRIES;
        loop {
            let before = length(path);
            match attempt(agent, url, archive.size, path, progress) {
                Ok(()) => match check(url, archive, path) {
                    Ok(()) => return Ok(()),
                    Err(problem) => {
                        fs_err::remove_file(path)?;
                        // The beginning of an earlier attempt may be at fault, so the address gets another chance.
                        if before == 0 {
                            error = Some(problem);
                            break;
                        }
                    }
                },
                Err(Attempt::Final(problem)) => return Err(problem),
                Err(Attempt::Broken(problem)) => {
                    tracing::debug!(url, have = length(path), %problem, "broken off");
                    error = Some(problem);
                    if length(path) <= before {
                        if retries == 0 {
                            break;
                        }
                        retries -= 1;
                    }
                }
                Err(Attempt::Refused(problem)) => {
                    error = Some(problem);
                    break;
                }
            }
        }
    }
    Err(error.expect("an archive has at least one address"))
}

/// Why an attempt to download did not succeed.
enum Attempt {
    /// Worth another attempt at the same address.
    Broken(FetchError),
    /// Worth an attempt at another address only.
    Refused(FetchError),
    /// Not worth another attempt.
    Final(FetchError),
}

impl From<io::Error> for Attempt {
    fn from(error: io::Error) -> Self {
        Self::Final(error.into())
    }
}

/// Asks one address for what is missing of the file and appends it.
fn attempt(
    agent: &ureq::Agent,
    url: &str,
    size: u64,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Attempt> {
    let network = |source| FetchError::Network { url: url.to_owned(), source: Box::new(source) };
    if length(path) > size {
        fs_err::remove_file(path)?;
    }
    let mut have = length(path);
    if progress(have).is_break() {
        return Err(Attempt::Final(FetchError::Interrupted));
    }
    if have == size {
        return Ok(());
    }
    let mut request = agent.get(url).header(ACCEPT_ENCODING, "identity");
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let response = request.call().map_err(|source| Attempt::Broken(network(source)))?;
    let status = response.status();
    let resumes = status == StatusCode::PARTIAL_CONTENT
        && header(&response, &CONTENT_RANGE).is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
    if have > 0 && !resumes && (status == StatusCode::PARTIAL_CONTENT || status == StatusCode::RANGE_NOT_SATISFIABLE) {
        // The server cannot go on from what we have; it has to begin again.
        fs_err::remove_file(path)?;
        return attempt(agent, url, size, path, progress);
    }
    if !resumes && status != StatusCode::OK {
        return Err(Attempt::Refused(FetchError::Status { url: url.to_owned(), status: status.as_u16() }));
    }
    if !resumes {
        // A server that knows no ranges sends the file from its beginning.
        have = 0;
    }
    let wrong_size = |found: String| FetchError::WrongFile {
        url: url.to_owned(),
        quantity: "size",
        found,
        expected: format!("{size} bytes"),
    };
    if let Some(length) = header(&response, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok())
        && have.checked_add(length) != Some(size)
    {
        return Err(Attempt::Refused(wrong_size(format!("{} bytes", have.saturating_add(length)))));
    }
    let mut file = fs_err::OpenOptions::new().create(true).append(resumes).write(true).truncate(!resumes).open(path)?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Attempt::Broken(network(error.into()))),
        };
        file.write_all(&buffer[..read])?;
        have += read as u64;
        if have > size {
            drop(file);
            fs_err::remove_file(path)?;
            return Err(Attempt::Refused(wrong_size(format!("more than {size} bytes"))));
        }
        if progress(have).is_break() {
            return Err(Attempt::Final(FetchError::Interrupted));
        }
    }
    if have < size {
        let source =
            io::Error::new(io::ErrorKind::UnexpectedEof, format!("the server stops after {have} of {size} bytes"));
        return Err(Attempt::Broken(network(source.into())));
    }
    file.file().sync_all()?;
    Ok(())
}

fn header<'a, B>(response: &'a ureq::http::Response<B>, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

fn check(url: &str, archive: &Archive, path: &Path) -> Result<(), FetchError> {
    let mut file = fs_err::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let found = hexadecimal(&hash.finalize());
    if found == archive.sha256 {
        Ok(())
    } else {
        let expected = archive.sha256.clone();
        Err(FetchError::WrongFile { url: url.to_owned(), quantity: "SHA-256", found, expected })
    }
}

/// Unpacks the plain files of a `.tar.gz`; nothing is written outside `into`.
fn unpack(archive: &Path, into: &Path) -> Result<(), FetchError> {
    let file = BufReader::with_capacity(1 << 16, fs_err::File::open(archive)?);
    for entry in tar::Archive::new(GzDecoder::new(file)).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            // `unpack_in` passes over paths that lead out of the folder.
            entry.unpack_in(into)?;
        }
    }
    Ok(())
}

fn length(path: &Path) -> u64 {
    fs_err::metadata(path).map_or(0, |file| file.len())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// How the server treats a request.
    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        /// As it should.
        Good,
        /// Breaks the connection after so many bytes of the body.
        BreaksOff(usize),
        /// Knows no ranges.
        NoRanges,
        /// Answers with this status.
        Refuses(u16),
    }

    /// A web server of one file on 127.0.0.1, which treats its requests in the given manners, the last one forever.
    struct Server {
        url: String,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn start(content: Vec<u8>, manners: Vec<Manner>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/archive", listener.local_addr().unwrap());
            let requests = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&requests);
            std::thread::spawn(move || {
                for (number, connection) in listener.incoming().enumerate() {
                    let mut connection = connection.unwrap();
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if connection.read(&mut byte).unwrap_or(0) == 0 {
                            break;
                        }
                        request.push(byte[0]);
                    }
                    let request = String::from_utf8(request).unwrap().to_lowercase();
                    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes="));
                    log.lock().unwrap().push(range.unwrap_or("whole").to_owned());
                    let manner = manners[number.min(manners.len() - 1)];
                    let start = range
                        .filter(|_| manner != Manner::NoRanges)
                        .map(|range| range.strip_suffix('-').unwrap().parse::<usize>().unwrap());
                    let body = &content[start.unwrap_or(0).min(content.len())..];
                    let status = match (manner, start) {
                        (Manner::Refuses(status), _) => format!("{status} No"),
                        (_, Some(start)) => format!(
                            "206 Partial Content\r\nContent-Range: bytes {start}-{}/{}",
                            content.len() - 1,
                            content.len()
                        ),
                        (_, None) => "200 OK".to_owned(),
                    };
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                    let sent = if let Manner::BreaksOff(bytes) = manner { &body[..bytes.min(length)] } else { body };
                    // The client may have hung up; that is its right.
                    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(sent));
                }
            });
            Self { url, requests }
        }

        fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }
    }

    /// A `.tar.gz` of a folder with two files, one of them too random to be compressed.
    fn archive_bytes() -> Vec<u8> {
        use rand::Rng;
        let mut noise = vec![0; 300_000];
        crate::stream(0, "noise").fill_bytes(&mut noise);
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(encoder);
        for (path, data) in
            [("folder/train.bin", &noise[..]), ("folder/test.bin", &[1, 2, 3]), ("folder/readme.html", b"hi")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, data).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn entry_for(content: &[u8], urls: &[&str]) -> CatalogEntry {
        CatalogEntry {
            folder: "folder",
            files: &["train.bin", "test.bin"],
            archives: vec![Archive {
                urls: urls.iter().map(|&url| url.to_owned()).collect(),
                file_name: "archive.tar.gz".to_owned(),
                size: content.len() as u64,
                sha256: hexadecimal(&Sha256::digest(content)),
                unpack: true,
            }],
            ..crate::catalog::entry("cifar100").unwrap()
        }
    }

    fn go_on(_: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(directory)
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    #[test]
    fn a_good_archive_is_unpacked_and_nothing_else_stays() {
        let content = archive_bytes();
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let into = directory.path().join("new/data");
        let mut steps = Vec::new();
        let target = fetch(&entry_for(&content, &[&server.url]), &into, &mut |done, total| {
            steps.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(target, into.join("folder"));
        assert_eq!(names(&into), ["folder"]);
        assert_eq!(names(&target), ["readme.html", "test.bin", "train.bin"]);
        assert_eq!(fs_err::read(target.join("test.bin")).unwrap(), [1, 2, 3]);
        let total = content.len() as u64;
        assert!(steps.is_sorted() && steps.iter().all(|step| step.1 == total));
        assert_eq!((steps[0].0, steps.last().unwrap().0), (0, total));
        // What is there is not downloaded again.
        fetch(&entry_for(&content, &[&server.url]), &into, &mut go_on).unwrap();
        assert_eq!(server.requests(), ["whole"]);
    }

    #[test]
    fn a_wrong_checksum_leaves_nothing_behind() {
        let content = archive_bytes();
        let mut forged = content.clone();
        *forged.last_mut().unwrap() ^= 1;
        let server = Server::start(forged, vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let into = directory.path().join("data");
        let error = fetch(&entry_for(&content, &[&server.url]), &into, &mut go_on).unwrap_err();
        assert!(matches!(error, FetchError::WrongFile { quantity: "SHA-256", .. }), "{error}");
        assert!(!into.exists());
    }

    #[test]
    fn a_wrong_size_is_refused_before_anything_is_stored() {
        let content = archive_bytes();
        let server = Server::start(b"<html>please log in</html>".to_vec(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let error = fetch(&entry_for(&content, &[&server.url]), directory.path(), &mut go_on).unwrap_err();
        assert!(error.to_string().contains("has size 26 bytes, expected 300"), "{error}");
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_broken_connection_is_resumed_at_once() {
        let content = archive_bytes();
        let server =
            Server::start(content.clone(), vec![Manner::BreaksOff(1000), Manner::BreaksOff(500), Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        fetch(&entry_for(&content, &[&server.url]), directory.path(), &mut go_on).unwrap();
        assert_eq!(server.requests(), ["whole", "1000-", "1500-"]);
        assert_eq!(names(directory.path()), ["folder"]);
    }

    #[test]
    fn an_interrupted_download_resumes_in_the_next_call() {
        let content = archive_bytes();
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let entry = entry_for(&content, &[&server.url]);
        let error = fetch(&entry, directory.path(), &mut |done, _| {
            if done > 100_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(error, Err(FetchError::Interrupted)));
        assert_eq!(names(directory.path()), [".folder.partial"]);
        fetch(&entry, directory.path(), &mut go_on).unwrap();
        let requests = server.requests();
        assert_eq!((requests.len(), requests[0].as_str()), (2, "whole"));
        let resumed: usize = requests[1].strip_suffix('-').unwrap().parse().unwrap();
        assert!(resumed > 100_000, "resumed at {resumed}");
        assert_eq!(names(directory.path()), ["folder"]);
    }

    #[test]
    fn a_server_without_ranges_begins_again() {
        let content = archive_bytes();
        let server = Server::start(content.clone(), vec![Manner::BreaksOff(1000), Manner::NoRanges]);
        let directory = tempfile::tempdir().unwrap();
        fetch(&entry_for(&content, &[&server.url]), directory.path(), &mut go_on).unwrap();
        assert_eq!(server.requests(), ["whole", "1000-"]);
    }

    #[test]
    fn a_false_beginning_is_found_out_and_replaced() {
        let content = archive_bytes();
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let staging = directory.path().join(".folder.partial");
        fs_err::create_dir(&staging).unwrap();
        fs_err::write(staging.join("archive.tar.gz"), vec![9; 1234]).unwrap();
        fetch(&entry_for(&content, &[&server.url]), directory.path(), &mut go_on).unwrap();
        assert_eq!(server.requests(), ["1234-", "whole"]);
    }

    #[test]
    fn the_next_address_is_tried() {
        let content = archive_bytes();
        let gone = Server::start(content.clone(), vec![Manner::Refuses(404)]);
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        fetch(&entry_for(&content, &[&gone.url, &server.url]), directory.path(), &mut go_on).unwrap();
        assert_eq!((gone.requests().len(), server.requests().len()), (1, 1));
        let error = fetch(&entry_for(&content, &[&gone.url]), &directory.path().join("other"), &mut go_on).unwrap_err();
        assert!(error.to_string().ends_with("cannot be downloaded: the server answers 404"), "{error}");
        assert!(!error.is_offline());
    }

    #[test]
    fn without_a_network_the_error_says_so() {
        // A port that was free a moment ago refuses connections.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let content = archive_bytes();
        let directory = tempfile::tempdir().unwrap();
        let entry = entry_for(&content, &[&format!("http://127.0.0.1:{port}/archive")]);
        let error = fetch(&entry, directory.path(), &mut go_on).unwrap_err();
        assert!(error.is_offline(), "{error}");
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn two_processes_do_not_download_to_one_place() {
        let content = archive_bytes();
        let directory = tempfile::tempdir().unwrap();
        let held = Staging::open(directory.path().join(".folder.partial")).unwrap();
        let error = fetch(&entry_for(&content, &["http://127.0.0.1:1/"]), directory.path(), &mut go_on).unwrap_err();
        assert!(matches!(error, FetchError::Busy { .. }), "{error}");
        held.close(false);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn an_archive_without_the_files_is_an_error() {
        let content = archive_bytes();
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let entry = CatalogEntry { files: &["train.bin", "meta.txt"], ..entry_for(&content, &[&server.url]) };
        let error = fetch(&entry, directory.path(), &mut go_on).unwrap_err();
        assert_eq!(error.to_string(), "archive.tar.gz does not hold meta.txt");
        assert!(!directory.path().join("folder").exists());
    }

    #[test]
    fn a_folder_that_lacks_files_is_not_touched() {
        let content = archive_bytes();
        let directory = tempfile::tempdir().unwrap();
        fs_err::create_dir(directory.path().join("folder")).unwrap();
        fs_err::write(directory.path().join("folder/train.bin"), "mine").unwrap();
        let error = fetch(&entry_for(&content, &["http://127.0.0.1:1/"]), directory.path(), &mut go_on).unwrap_err();
        assert!(error.to_string().contains("is there without test.bin"), "{error}");
        assert_eq!(fs_err::read(directory.path().join("folder/train.bin")).unwrap(), b"mine");
    }

    #[test]
    fn gtsrb_says_how_to_get_it() {
        let error = fetch(&crate::catalog::entry("gtsrb").unwrap(), Path::new("none"), &mut go_on).unwrap_err();
        assert!(
            error.to_string().starts_with("gtsrb cannot be downloaded; unpack GTSRB_Final_Training_Images.zip"),
            "{error}"
        );
    }

    #[test]
    fn files_of_a_plain_download_are_kept_as_they_are() {
        let content = b"gzipped labels".to_vec();
        let server = Server::start(content.clone(), vec![Manner::Good]);
        let directory = tempfile::tempdir().unwrap();
        let mut entry = entry_for(&content, &[&server.url]);
        entry.archives[0].unpack = false;
        entry.archives[0].file_name = "train.bin".to_owned();
        let mut second = entry.archives[0].clone();
        second.file_name = "test.bin".to_owned();
        entry.archives.push(second);
        let target = fetch(&entry, directory.path(), &mut go_on).unwrap();
        assert_eq!(names(&target), ["test.bin", "train.bin"]);
        assert_eq!(fs_err::read(target.join("test.bin")).unwrap(), content);
    }
}
