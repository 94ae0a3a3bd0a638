//! The load: closed loops for throughput, an open loop for latency, single streams for the delay of an event.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::process::Child;
use crate::upstream::nanoseconds;
use crate::wire::{Events, Expected, Kind, Message, request};
use crate::{BoxError, Options, Proxy};

/// How long one answer may take before the run fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients of the open loop. One that waits for a slow answer leaves the next request to another.
const CLIENTS: u32 = 4;
/// How much of the wait for a request's time is spent spinning: a sleep alone wakes up too late.
const SPIN: Duration = Duration::from_micros(150);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Plain,
    Streams,
    Latency,
    Paced,
}

impl Mode {
    pub(crate) const ALL: [Mode; 4] = [Mode::Plain, Mode::Streams, Mode::Latency, Mode::Paced];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Plain => "plain",
            Mode::Streams => "streams",
            Mode::Latency => "latency",
            Mode::Paced => "paced",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<Self, BoxError> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == name);
        mode.ok_or_else(|| format!("unknown mode {name}").into())
    }
}

/// The outcome of one measurement.
pub(crate) enum Sample {
    Rate {
        per_second: f64,
        /// CPU microseconds a request, where there is a process that spends them.
        cpu: Option<f64>,
    },
    /// Sorted, in nanoseconds.
    Delays(Vec<u64>),
}

pub(crate) fn measure(
    runtime: &Runtime,
    proxy: &Proxy,
    mode: Mode,
    options: &Options,
) -> Result<Sample, BoxError> {
    match mode {
        Mode::Plain => runtime.block_on(closed_loop(proxy, Kind::Plain, options)),
        Mode::Streams => runtime.block_on(closed_loop(proxy, Kind::Stream, options)),
        Mode::Latency => open_loop(proxy, options),
        Mode::Paced => paced(proxy, options),
    }
}

/// One request of each kind, answered rightly.
pub(crate) fn verify(proxy: &Proxy) -> Result<(), BoxError> {
    let mut client = Client::connect(proxy)?;
    for kind in [Kind::Plain, Kind::Stream, Kind::Paced, Kind::Plain] {
        client.exchange(&request(kind, proxy.address), &Expected::of(kind))?;
    }
    Ok(())
}

/// A few connections, each with a request under way at any time.
async fn closed_loop(proxy: &Proxy, kind: Kind, options: &Options) -> Result<Sample, BoxError> {
    let answered = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let request: Arc<[u8]> = request(kind, proxy.address).into();
    let expected = Arc::new(Expected::of(kind));

    let mut clients = JoinSet::new();
    for _ in 0..options.connections {
        let (address, answered, stop) = (proxy.address, answered.clone(), stop.clone());
        let (request, expected) = (request.clone(), expected.clone());
        clients.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut response = Message::default();
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&request).await?;
                while !response.advance()? {
                    if stream.read_buf(response.buffer()).await? == 0 {
                        return Err("closed in the middle of an answer".into());
                    }
                }
                expected.check(&response)?;
                response.next();
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    let read = || {
        let cpu = proxy.child.as_ref().and_then(Child::cpu);
        (Instant::now(), answered.load(Ordering::Relaxed), cpu)
    };
    run_for(&mut clients, (options.seconds / 4).min(Duration::from_millis(500))).await?;
    let (begin, answered_before, cpu_before) = read();
    run_for(&mut clients, options.seconds).await?;
    let (end, answered_after, cpu_after) = read();

    stop.store(true, Ordering::Relaxed);
    let rest = async {
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok::<_, BoxError>(())
    };
    tokio::time::timeout(PATIENCE, rest).await.map_err(|_| "an answer never came")??;

    let answers = answered_after - answered_before;
    if answers == 0 {
        return Err("no answer at all".into());
    }
    let cpu = cpu_before.zip(cpu_after);
    Ok(Sample::Rate {
        per_second: answers as f64 / (end - begin).as_secs_f64(),
        cpu: cpu.map(|(before, after)| after.saturating_sub(before).as_secs_f64() * 1e6 / answers as f64),
    })
}

/// Lets the clients run; the first that fails ends it.
async fn run_for(clients: &mut JoinSet<Result<(), BoxError>>, time: Duration) -> Result<(), BoxError> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        Some(ended) = clients.join_next() => ended?.and(Err("a client ended early".into())),
    }
}

/// Requests at fixed times, whatever became of those before. Each latency counts from the time at which its request was
/// to be sent, so a proxy that stalls pays for every request it kept waiting.
fn open_loop(proxy: &Proxy, options: &Options) -> Result<Sample, BoxError> {
    let interval = Duration::from_secs(1) / options.rate;
    let requests = (options.seconds.as_secs_f64() * f64::from(options.rate)).ceil() as u32;
    let request = request(Kind::Plain, proxy.address);
    let expected = Expected::of(Kind::Plain);
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect(proxy)?;
        client.exchange(&request, &expected)?;
        connections.push(client);
    }

    let start = Instant::now() + Duration::from_millis(20);
    let run = |mut client: Client, first: u32| {
        let (request, expected) = (&request, &expected);
        move || -> Result<Vec<u64>, BoxError> {
            let mut latencies = Vec::new();
            for turn in (first..requests).step_by(CLIENTS as usize) {
                let due = start + interval * turn;
                thread::sleep((due - SPIN).saturating_duration_since(Instant::now()));
                while Instant::now() < due {
                    std::hint::spin_loop();
                }
                client.exchange(request, expected)?;
                latencies.push(due.elapsed().as_nanos() as u64);
            }
            Ok(latencies)
        }
    };
    let mut latencies = thread::scope(|scope| {
        let threads: Vec<_> =
            connections.into_iter().zip(0..).map(|(client, first)| scope.spawn(run(client, first))).collect();
        threads.into_iter().try_fold(Vec::new(), |mut all, thread| {
            all.extend(thread.join().map_err(|_| "a client panicked")??);
            Ok::<_, BoxError>(all)
        })
    })?;
    latencies.sort_unstable();
    Ok(Sample::Delays(latencies))
}

/// One stream after the other, an event each millisecond: how long each event takes from the upstream to here.
fn paced(proxy: &Proxy, options: &Options) -> Result<Sample, BoxError> {
    let request = request(Kind::Paced, proxy.address);
    let expected = Expected::of(Kind::Paced);
    let mut client = Client::connect(proxy)?;
    let mut delays = Vec::new();
    let give_up = Instant::now() + options.seconds;
    while delays.is_empty() || Instant::now() < give_up {
        let mut events = Events::default();
        client.exchange_with(&request, &expected, |body| {
            let now = nanoseconds();
            events.advance(body, |stamp| delays.push(now.saturating_sub(stamp)))
        })?;
    }
    delays.sort_unstable();
    Ok(Sample::Delays(delays))
}

/// A blocking client: its waiting is the kernel's alone, no runtime between.
struct Client {
    stream: TcpStream,
    response: Message,
}

impl Client {
    fn connect(proxy: &Proxy) -> Result<Self, BoxError> {
        let stream = TcpStream::connect_timeout(&proxy.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, response: Message::default() })
    }

    fn exchange(&mut self, request: &[u8], expected: &Expected) -> Result<(), BoxError> {
        self.exchange_with(request, expected, |_| Ok(()))
    }

    /// `look` sees the body after every read.
    fn exchange_with(
        &mut self,
        request: &[u8],
        expected: &Expected,
        mut look: impl FnMut(&[u8]) -> Result<(), BoxError>,
    ) -> Result<(), BoxError> {
        self.stream.write_all(request)?;
        let mut bytes = [0; 16 << 10];
        loop {
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                return Err("closed in the middle of an answer".into());
            }
            self.response.buffer().extend_from_slice(&bytes[..count]);
            let complete = self.response.advance()?;
            look(self.response.body())?;
            if complete {
                break;
            }
        }
        expected.check(&self.response)?;
        self.response.next();
        Ok(())
    }
}
