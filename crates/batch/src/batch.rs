use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::{
    BatchLayer, InvalidSettings, Settings, Stats,
    control::Control,
    stats::Totals,
    sync::{Mutex, lock},
};

/// The settings, the statistics and the end of all batch layers that are made from it.
///
/// ```
/// use std::time::Duration;
/// use bartizan_batch::{Batch, Settings};
/// use bartizan_core::{BoxError, Rejected, RejectionKind};
/// use tower::{Layer, Service, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let batch = Batch::new(Settings::max_size(10));
/// let mut service = batch.layer().layer(service_fn(|items: Vec<u32>| async move {
///     Ok::<_, BoxError>(items.into_iter().map(|n| n.checked_sub(1).ok_or("no number")).collect())
/// }));
/// assert_eq!(service.ready().await?.call(1).await?, 0);
/// assert_eq!(service.ready().await?.call(0).await.unwrap_err().to_string(), "no number");
/// assert_eq!((batch.stats().batches, batch.stats().items), (2, 2));
///
/// batch.shutdown();
/// let error = service.ready().await?.call(1).await.unwrap_err();
/// assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::Closed));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Batch {
    handle: Arc<Handle>,
}

struct Handle {
    settings: Settings,
    totals: Arc<Totals>,
    queues: Mutex<Queues>,
}

/// Those of the services that there are.
#[derive(Default)]
struct Queues {
    closed: bool,
    controls: Vec<Weak<Control>>,
}

impl Batch {
    /// A handle.
    ///
    /// # Panics
    ///
    /// If no batch could ever go: see [`InvalidSettings`].
    pub fn new(settings: Settings) -> Self {
        match Self::try_new(settings) {
            Ok(batch) => batch,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// A handle, of settings that come from a file.
    ///
    /// # Errors
    ///
    /// If no batch could ever go.
    pub fn try_new(settings: Settings) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let (totals, queues) = (Arc::default(), Mutex::new(Queues::default()));
        Ok(Self { handle: Arc::new(Handle { settings, totals, queues }) })
    }

    /// A layer. The service below it takes a `Vec` of what its own service takes one of, and gives a result for each.
    pub fn layer<Req>(&self) -> BatchLayer<Req> {
        BatchLayer::new(self.clone())
    }

    /// Accepts nothing more, in all layers of this handle and those still to be made, and sends what waits, at once.
    ///
    /// It returns before the batches are answered; whoever waits for an answer gets it.
    pub fn shutdown(&self) {
        let mut queues = lock(&self.handle.queues);
        queues.closed = true;
        let controls = queues.controls.clone();
        drop(queues);
        controls.iter().filter_map(Weak::upgrade).for_each(|control| control.close());
    }

    /// What has been done, and what is under way now.
    pub fn stats(&self) -> Stats {
        let queues = lock(&self.handle.queues);
        let waiting = queues.controls.iter().filter_map(Weak::upgrade).map(|it| it.waiting()).sum();
        drop(queues);
        self.handle.totals.stats(waiting)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.handle.settings
    }

    /// What a new queue shares with this handle.
    pub(crate) fn join(&self) -> (Arc<Control>, Arc<Totals>) {
        let control = Arc::new(Control::new(self.handle.settings.max_pending));
        let mut queues = lock(&self.handle.queues);
        queues.controls.retain(|control| control.strong_count() > 0);
        queues.controls.push(Arc::downgrade(&control));
        let closed = queues.closed;
        drop(queues);
        if closed {
            control.close();
        }
        (control, self.handle.totals.clone())
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("settings", &self.handle.settings)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
