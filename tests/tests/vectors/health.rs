//! How the cases of `health.json` drive the layer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bartizan_core::{BoxError, Class, RetryAfter};
use bartizan_health::{Active, Component, Ejection, Health, Passive, Probe, Probed, Settings, State};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step};
use serde::Deserialize;
use serde_json::{Value, json};
use tower::{Layer, Service, ServiceExt, service_fn};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActiveConfig {
    unhealthy_threshold: Option<u32>,
    healthy_threshold: Option<u32>,
    timeout: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PassiveConfig {
    window: Option<u64>,
    min_requests: Option<u32>,
    degraded_pct: Option<u8>,
    degraded_exit_pct: Option<u8>,
    unhealthy_pct: Option<u8>,
    unhealthy_exit_pct: Option<u8>,
}

pub(crate) struct Healthy {
    /// What probes and traffic are of.
    component: Component,
    /// What the next probe answers.
    good: Arc<AtomicBool>,
    probes: Vec<Probe>,
    transitions: Vec<State>,
    last: State,
    /// Those that can be ejected.
    pool: Health,
    hosts: Vec<String>,
}

fn active(config: &Fields) -> Result<Active, String> {
    let mut active = Active::new();
    if let Some(ActiveConfig { unhealthy_threshold, healthy_threshold, timeout }) = config.get("active")? {
        active = unhealthy_threshold.map_or(active.clone(), |n| active.unhealthy_after(n));
        active = healthy_threshold.map_or(active.clone(), |n| active.healthy_after(n));
        active = timeout.map_or(active.clone(), |ms| active.timeout(Duration::from_millis(ms)));
    }
    Ok(active)
}

fn passive(config: &Fields) -> Result<Passive, String> {
    let mut passive = Passive::none();
    if let Some(given) = config.get::<PassiveConfig>("passive")? {
        passive = given.window.map_or(passive.clone(), |ms| passive.window(Duration::from_millis(ms)));
        passive = given.min_requests.map_or(passive.clone(), |n| passive.min_requests(n));
        passive = given.degraded_pct.map_or(passive.clone(), |n| passive.degraded(n));
        passive = given.degraded_exit_pct.map_or(passive.clone(), |n| passive.degraded_exit(n));
        passive = given.unhealthy_pct.map_or(passive.clone(), |n| passive.unhealthy(n));
        passive = given.unhealthy_exit_pct.map_or(passive.clone(), |n| passive.unhealthy_exit(n));
    }
    Ok(passive)
}

fn ejection(config: &Fields) -> Result<Ejection, String> {
    // The cases know no end of what is remembered.
    let mut ejection = Ejection::after(config.get("consecutive")?.unwrap_or(5)).forget_after(None);
    let millis = |ms: Option<u64>, or| Duration::from_millis(ms.unwrap_or(or));
    let (base, max) = (config.get("base")?, config.get("max")?);
    ejection = ejection.times(millis(base, 30_000), millis(max, 300_000));
    if let Some(percent) = config.get("max_ejection_pct")? {
        ejection = ejection.at_most(percent);
    }
    if let Some(percent) = config.get("panic_pct")? {
        ejection = ejection.panic_below(percent);
    }
    Ok(ejection)
}

impl Healthy {
    /// A call through the layer.
    async fn call(&self, good: bool) {
        let inner =
            service_fn(async |good: bool| if good { Ok(()) } else { Err(BoxError::from("it fails")) });
        let mut service = self.component.layer().layer(inner);
        let answer = service.ready().await.expect("the inner service is ready").call(good).await;
        assert_eq!(answer.is_ok(), good);
    }

    fn look(&mut self) {
        let state = self.component.state();
        if state != self.last {
            self.transitions.push(state);
            self.last = state;
        }
    }

    fn host(&self, step: &Step) -> Result<Component, String> {
        let name: String = step.args.need("host")?;
        let known = self.hosts.contains(&name).then(|| self.pool.get(&name)).flatten();
        known.ok_or_else(|| format!("no host {name:?}"))
    }

    fn seen(&mut self, more: Value) -> Value {
        self.look();
        let stats = self.component.stats();
        let ejected: Vec<_> = self
            .pool
            .components()
            .iter()
            .map(Component::stats)
            .filter(|stats| stats.ejected_for.is_some())
            .map(|stats| stats.name)
            .collect();
        let eligible = self.pool.eligible();
        let mut seen = json!({
            "state": stats.state.as_str(),
            "active": stats.active.map_or("unknown", State::as_str),
            "passive": stats.passive.as_str(),
            "failures": stats.failed_probes,
            "transitions": self.transitions.iter().map(|state| state.as_str()).collect::<Vec<_>>(),
            "ejected": ejected,
            "overflow": self.pool.ejections_refused(),
            "panic": eligible.panic,
            "eligible": eligible.names,
        });
        if let (Value::Object(seen), Value::Object(more)) = (&mut seen, more) {
            seen.extend(more);
        }
        seen
    }
}

impl Adapter for Healthy {
    fn build(config: &Fields) -> Result<Self, String> {
        let settings = Settings::new().active(active(config)?).passive(passive(config)?);
        let health = Health::try_with(settings).map_err(|invalid| invalid.to_string())?;
        let good = Arc::new(AtomicBool::new(false));
        let answers = good.clone();
        let probe = move || {
            let good = answers.load(SeqCst);
            async move { if good { Ok(()) } else { Err("it fails") } }
        };
        // Nobody polls the prober: a case says when there is a probe.
        let (component, _prober) = health.prober("it", Duration::from_secs(1), probe);

        let hosts: Vec<String> = config.get("hosts")?.unwrap_or_default();
        let settings = Settings::new().passive(Passive::none()).ejection(ejection(config)?);
        let pool = Health::try_with(settings).map_err(|invalid| invalid.to_string())?;
        for host in &hosts {
            pool.component(host);
        }
        Ok(Self { component, good, probes: vec![], transitions: vec![], last: State::Healthy, pool, hosts })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        let more = match step.op.as_str() {
            "state" | "tick" | "sweep" | "pick" => json!({}),
            "probe" => {
                self.good.store(step.args.need("ok")?, SeqCst);
                let probed = self.component.probe_now().await.ok_or("there is no probe")?;
                json!({"started": probed != Probed::UnderWay, "counted": probed != Probed::UnderWay})
            }
            "probe_start" => {
                let probe = self.component.start_probe();
                let started = probe.is_some();
                self.probes.extend(probe);
                json!({"started": started})
            }
            "probe_end" => {
                let good: bool = step.args.need("ok")?;
                // The one that is under way, or else one that comes too late.
                let probe = self.probes.pop().ok_or("no probe was started")?;
                let counted = if good { probe.good() } else { probe.failed(&"it fails") };
                json!({"counted": counted})
            }
            "requests" => {
                let n = |key| step.args.get::<u64>(key).map(Option::unwrap_or_default);
                let (ok, err) = (n("ok")?, n("err")?);
                for request in 0..ok + err {
                    self.call(request < ok).await;
                    self.look();
                }
                json!({})
            }
            "host_result" => {
                let (host, good) = (self.host(step)?, step.args.need("ok")?);
                let class = if good { Class::Success } else { Class::Failure(RetryAfter::Unknown) };
                for _ in 0..step.args.get("n")?.unwrap_or(1_u64) {
                    host.record(class, Duration::ZERO, None);
                }
                json!({})
            }
            _ => return step.unknown(),
        };
        Ok(Answer::Now(self.seen(more)))
    }
}
