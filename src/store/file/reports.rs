//! [`Reports`]: one log line for each file, however often it is found.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tracing::warn;

use crate::foreign::quietly;

/// The most paths that are remembered. Beyond them a file may be reported again.
const MAX_PATHS: usize = 1_024;

/// The files that were reported and have not been mended since.
#[derive(Default)]
pub(super) struct Reports {
    paths: Mutex<HashSet<PathBuf>>,
}

impl Reports {
    pub(super) fn report_ignored(&self, path: &Path, reason: &'static str) {
        if self.record_first(path) {
            let path = path.display();
            quietly(|| {
                warn!(
                    event = "store_file_ignored",
                    %path, reason, "a file of the token store is ignored, and will be replaced"
                );
            });
        }
    }

    pub(super) fn report_locked(&self, path: &Path) {
        if self.record_first(path) {
            let path = path.display();
            quietly(|| {
                warn!(
                    event = "store_file_locked",
                    %path, "another process keeps the files of the token store locked; if it was \
                     stopped, continue or end it"
                );
            });
        }
    }

    /// Records that a file is well again, so that the next fault is reported.
    pub(super) fn record_mended(&self, path: &Path) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    /// Records a report; `false` if the file was reported before.
    fn record_first(&self, path: &Path) -> bool {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.len() >= MAX_PATHS {
            paths.clear();
        }
        paths.insert(path.to_owned())
    }
}
