use std::{fmt, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{Health, State, clock, health::WeakHealth};

/// Tells of changes: [`Health::watch`] makes one. It does not keep the handle alive.
pub struct Watch {
    health: WeakHealth,
    name: Option<String>,
    changes: watch::Receiver<()>,
    told: Option<Option<Standing>>,
}

/// How a component, or the whole, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How it fares.
    pub state: State,
    /// Whether it is going away.
    pub draining: bool,
}

impl Standing {
    /// Whether it should be sent work: it is not going away, and not unhealthy.
    pub fn serves(self) -> bool {
        !self.draining && self.state != State::Unhealthy
    }
}

/// Nobody tells when a report changes, so as long as there are any it is asked so often.
const REFRESH: Duration = Duration::from_secs(1);

impl Watch {
    pub(crate) fn new(health: &Health, name: Option<&str>) -> Self {
        Self {
            health: health.downgrade(),
            name: name.map(ToOwned::to_owned),
            changes: health.changes(),
            told: None,
        }
    }

    /// How it stands, the first time at once and then whenever that is another: `Some(None)` for a component that does not
    /// exist yet, and `None` once the handle is gone.
    ///
    /// What time changes is told then. Reports are asked once a second while somebody waits here. Dropped before it is
    /// complete it has missed nothing.
    pub async fn next(&mut self) -> Option<Option<Standing>> {
        loop {
            self.changes.mark_unchanged();
            let until = {
                let health = self.health.upgrade()?;
                let standing = standing(&health, self.name.as_deref());
                if self.told != Some(standing) {
                    self.told = Some(standing);
                    return Some(standing);
                }
                until(&health, self.name.is_none())
            };
            match until {
                Some(until) => {
                    if let Ok(Err(_)) = timeout_at(until, self.changes.changed()).await {
                        return None;
                    }
                }
                None => self.changes.changed().await.ok()?,
            }
        }
    }
}

fn until(health: &Health, whole: bool) -> Option<Instant> {
    let refresh = (whole && health.has_reports()).then(|| clock::now() + REFRESH);
    health.next_change().into_iter().chain(refresh).min()
}

pub(crate) fn standing(health: &Health, name: Option<&str>) -> Option<Standing> {
    let whole = health.is_draining();
    match name {
        None => Some(Standing { state: health.state(), draining: whole }),
        Some(name) => {
            let component = health.get(name)?;
            let draining = whole || component.watched.is_draining();
            Some(Standing { state: component.state(), draining })
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).field("told", &self.told).finish_non_exhaustive()
    }
}
