//! The end of a daemon.
//!
//! A container's daemon may have been found by a `start` and not yet have got its create: that must
//! never meet a daemon that ends. So whoever finds a daemon notes its address in the container's
//! bundle, and whoever ends removes its socket, both under the lock of the socket's folder. A daemon
//! does not end while a bundle has its address and no note of this shim's ([`crate::memo`]), which a
//! create leaves before anything else; one that cannot be found any more is not waited for by
//! anybody.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::group::Kind;
use crate::memo;
use crate::socket::{self, SocketFile};
use crate::start::ADDRESS_FILE;

/// How long a container is expected after its `start`: if containerd dies between the two, it is
/// never created.
const EXPECTED: Duration = Duration::from_secs(60);

/// How long the daemon of a namespace stays without tasks, where no setting says so: the next
/// container is often not far.
const LINGER: Duration = Duration::from_secs(5);

/// How soon a daemon that is still expecting somebody, or finds the lock taken, looks again.
const PAUSE: Duration = Duration::from_millis(25);

/// Decides when the daemon ends.
pub struct Departure {
    socket: SocketFile,
    kind: Kind,
    /// The bundle that the daemon was started for.
    first: PathBuf,
    asked: Notify,
    linger: Mutex<Duration>,
    /// That it ends whatever tasks it has.
    insisted: AtomicBool,
    /// The bundles of containers of which containerd wants nothing more, with the moment at which
    /// they were given the address: there may be others in their place later.
    dismissed: Mutex<HashMap<PathBuf, SystemTime>>,
}

impl Departure {
    /// That of the daemon with this `socket`, started for the container or sandbox with the bundle
    /// `first`.
    pub fn new(socket: SocketFile, kind: Kind, first: &Path) -> Self {
        Self {
            socket,
            kind,
            first: first.to_owned(),
            asked: Notify::new(),
            linger: Mutex::new(LINGER),
            insisted: AtomicBool::new(false),
            dismissed: Mutex::default(),
        }
    }

    /// Has the daemon end if it has nothing to do.
    pub fn consider(&self) {
        self.asked.notify_one();
    }

    /// Has the daemon end if whom it was started for does not come: containerd may have died, or failed, before it sent it.
    pub async fn give_up_first(&self) {
        sleep(EXPECTED).await;
        if !memo::is_in(&self.first) {
            self.consider();
        }
    }

    /// Has the daemon end, whatever tasks it has.
    pub fn insist(&self) {
        self.insisted.store(true, Ordering::Relaxed);
        self.consider();
    }

    /// Has the daemon of a namespace stay for so long without tasks.
    pub fn set_linger(&self, time: Option<Duration>) {
        *self.linger.lock().unwrap_or_else(PoisonError::into_inner) = time.unwrap_or(LINGER);
    }

    fn linger(&self) -> Duration {
        *self.linger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the container or sandbox `id` is not to be expected.
    pub fn dismiss(&self, id: &str) {
        self.dismiss_bundle(match self.kind {
            Kind::Container => self.first.clone(),
            Kind::Annotation | Kind::Namespace => self.bundles().join(id),
        });
    }

    /// As [`Departure::dismiss`], of whom the daemon was started for.
    pub fn dismiss_first(&self) {
        self.dismiss_bundle(self.first.clone());
    }

    fn dismiss_bundle(&self, bundle: PathBuf) {
        let Some(at) = self.noted_at(&bundle) else {
            return;
        };
        let mut dismissed = self
            .dismissed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        dismissed.retain(|_, at| is_recent(*at));
        dismissed.insert(bundle, at);
    }

    /// The folder of the bundles of the daemon's containers.
    fn bundles(&self) -> &Path {
        self.first.parent().unwrap_or(&self.first)
    }

    /// Waits until the daemon has left: it is `idle`, nobody is expected, and its socket is gone. It
    /// looks whenever somebody has it [consider](Departure::consider) that.
    pub async fn left(&self, idle: impl Fn() -> bool) {
        let idle = || idle() || self.insisted.load(Ordering::Relaxed);
        loop {
            self.asked.notified().await;
            if self.kind == Kind::Namespace {
                // Every end of a container begins this anew.
                while timeout(self.linger(), self.asked.notified()).await.is_ok() {}
            }
            while idle() {
                match self.leave() {
                    Ok(true) => return,
                    Ok(false) => sleep(PAUSE).await,
                    Err(error) => {
                        log::error!("removing {}: {error}", self.socket.path().display());
                        return;
                    }
                }
            }
        }
    }

    /// Removes the socket, unless somebody is expected or may be found out to be just now.
    fn leave(&self) -> io::Result<bool> {
        let Some(_place) = socket::try_lock(self.socket.path())? else {
            return Ok(false);
        };
        let expected = match self.kind {
            Kind::Container => self.is_expected(&self.first),
            Kind::Annotation | Kind::Namespace => {
                let bundles = fs::read_dir(self.bundles()).into_iter().flatten().flatten();
                bundles
                    .map(|bundle| bundle.path())
                    .any(|bundle| self.is_expected(&bundle))
            }
        };
        if expected && !self.insisted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.socket.remove_locked();
        Ok(true)
    }

    /// Whether the container of `bundle` has been sent here and its create has not come yet.
    fn is_expected(&self, bundle: &Path) -> bool {
        let Some(at) = self.noted_at(bundle).filter(|at| is_recent(*at)) else {
            return false;
        };
        let dismissed = self
            .dismissed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        dismissed.get(bundle) != Some(&at) && !memo::is_in(bundle)
    }

    /// When the daemon's address was noted in `bundle`, if it was.
    fn noted_at(&self, bundle: &Path) -> Option<SystemTime> {
        let file = bundle.join(ADDRESS_FILE);
        let at = fs::metadata(&file).and_then(|file| file.modified()).ok()?;
        let noted = fs::read_to_string(file).ok()?;
        (socket::socket_path(&noted) == self.socket.path()).then_some(at)
    }
}

/// Whether a container may yet be expected whose bundle was given the address `at` that time.
fn is_recent(at: SystemTime) -> bool {
    // A time to come is a clock that was set back.
    at.elapsed().map_or(true, |since| since < EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memo::Memo;
    use crate::settings::Options;
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    struct Daemon {
        folder: tempfile::TempDir,
        listener: Option<UnixListener>,
        departure: Departure,
    }

    impl Daemon {
        fn new(kind: Kind) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s/socket");
            let place = socket::lock(&path).unwrap();
            let listener = socket::listen(&path).unwrap().unwrap();
            drop(place);
            let socket = SocketFile::of(&listener).unwrap();
            let bundle = folder.path().join("bundles/first");
            Self {
                departure: Departure::new(socket, kind, &bundle),
                folder,
                listener: Some(listener),
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("s/socket")
        }

        fn bundle(&self, id: &str) -> PathBuf {
            let bundle = self.folder.path().join("bundles").join(id);
            fs::create_dir_all(&bundle).unwrap();
            bundle
        }

        /// A bundle whose container is sent to the daemon.
        fn expect(&self, id: &str) -> PathBuf {
            let bundle = self.bundle(id);
            let address = format!("unix://{}", self.path().display());
            fs::write(bundle.join(ADDRESS_FILE), address).unwrap();
            bundle
        }
    }

    fn create(bundle: &Path) {
        let memo = Memo::new("ns", bundle, &Options::default());
        memo.write(bundle).unwrap();
    }

    #[test]
    fn whoever_is_expected_is_waited_for() {
        for kind in [Kind::Annotation, Kind::Namespace] {
            let daemon = Daemon::new(kind);
            create(&daemon.expect("first"));
            let second = daemon.expect("second");
            // Another daemon's.
            fs::write(daemon.bundle("other").join(ADDRESS_FILE), "unix:///x").unwrap();
            assert!(!daemon.departure.leave().unwrap());
            assert!(daemon.path().exists());
            create(&second);
            assert!(daemon.departure.leave().unwrap());
            assert!(!daemon.path().exists());
            drop(daemon.listener);
        }
    }

    #[test]
    fn a_containers_own_daemon_waits_for_the_next_of_its_id_alone() {
        let daemon = Daemon::new(Kind::Container);
        daemon.expect("second");
        let first = daemon.expect("first");
        assert!(!daemon.departure.leave().unwrap());
        daemon.departure.dismiss("first");
        let at = daemon.departure.noted_at(&first).unwrap();
        // The same id, once more.
        daemon.expect("first");
        let file = File::options()
            .write(true)
            .open(first.join(ADDRESS_FILE))
            .unwrap();
        file.set_modified(at + Duration::from_secs(1)).unwrap();
        assert!(!daemon.departure.leave().unwrap());
        daemon.departure.dismiss_first();
        assert!(daemon.departure.leave().unwrap());
    }

    #[test]
    fn nobody_is_expected_for_ever() {
        let daemon = Daemon::new(Kind::Namespace);
        let bundle = daemon.expect("second");
        let file = File::options()
            .write(true)
            .open(bundle.join(ADDRESS_FILE))
            .unwrap();
        file.set_modified(SystemTime::now() - EXPECTED).unwrap();
        assert!(daemon.departure.leave().unwrap());
    }

    #[test]
    fn nothing_is_decided_while_others_look_for_the_daemon() {
        let daemon = Daemon::new(Kind::Namespace);
        let place = socket::lock(&daemon.path()).unwrap();
        assert!(!daemon.departure.leave().unwrap());
        drop(place);
        assert!(daemon.departure.leave().unwrap());
    }
}
