//! Child processes that end with this one, whatever happens, and the CPU time they take.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use crate::bare::Shape;
use crate::{BoxError, bare, upstream};

/// How long a process may take to start, and how long to end.
const START: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(3);

/// What this program does when it is started as a child of itself.
pub(crate) enum Role {
    Upstream,
    Bare(Shape, SocketAddr),
    /// Runs a program and stops it at the end of standard input, which comes even if the parent is killed.
    Supervisor(Vec<String>),
}

impl Role {
    /// `role NAME ARGUMENTS..`, or None: not a child.
    pub(crate) fn parse(args: &[String]) -> Option<Result<Self, BoxError>> {
        let args = args.strip_prefix(&["role".to_owned()])?;
        let (name, rest) = args.split_first()?;
        let bare = |shape| match rest.first() {
            Some(address) => Ok(Role::Bare(shape, address.parse()?)),
            None => Err("a bare proxy needs an upstream".into()),
        };
        Some(match name.as_str() {
            "upstream" => Ok(Role::Upstream),
            "bare" => bare(Shape::TwoWorkers),
            "bare1" => bare(Shape::OneThread),
            "supervisor" => Ok(Role::Supervisor(rest.to_vec())),
            _ => Err(format!("unknown role {name}").into()),
        })
    }

    pub(crate) fn play(self) -> Result<ExitCode, BoxError> {
        if let Role::Supervisor(command) = self {
            return supervise(&command);
        }
        at_end_of_input(|| std::process::exit(0));
        let runtime = match self {
            Role::Bare(Shape::TwoWorkers, _) => {
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?
            }
            _ => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        };
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            println!("{}", listener.local_addr()?);
            match self {
                Role::Bare(_, upstream) => tokio::spawn(bare::serve(listener, upstream)).await??,
                _ => upstream::serve(listener).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn supervise(command: &[String]) -> Result<ExitCode, BoxError> {
    let (program, args) = command.split_first().ok_or("nothing to supervise")?;
    let mut child = Command::new(program).args(args).stdin(Stdio::null()).spawn()?;
    let pid = child.id();
    at_end_of_input(move || {
        signal("TERM", pid);
        thread::sleep(END / 2);
        signal("KILL", pid);
    });
    // No polling here: this process counts as part of the proxy.
    let status = child.wait()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The standard library has no signals but KILL, and this is no reason for a dependency.
fn signal(name: &str, pid: u32) {
    let _ = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).stderr(Stdio::null()).status();
}

fn at_end_of_input(then: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        then();
    });
}

/// A child process; dropping it ends it.
pub(crate) struct Child {
    pub(crate) address: SocketAddr,
    process: std::process::Child,
    /// Where its output goes, if it does not come here.
    output: Option<PathBuf>,
}

impl Child {
    /// This program in another role, which prints its address when it listens.
    pub(crate) fn of_role(role: &str) -> Result<Self, BoxError> {
        Self::of_args(&["role", role])
    }

    pub(crate) fn of_role_to(role: &str, upstream: SocketAddr) -> Result<Self, BoxError> {
        Self::of_args(&["role", role, &upstream.to_string()])
    }

    fn of_args(args: &[&str]) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take();
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut child = Child { address: nowhere, process, output: None };

        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(stdout) = stdout {
                let _ = BufReader::new(stdout).read_line(&mut line);
            }
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(START).map_err(|_| format!("{args:?} does not start"))?;
        child.address = line.trim().parse().map_err(|_| format!("{args:?} does not start"))?;
        Ok(child)
    }

    /// Another program, which is to listen on `address`, under a supervisor.
    pub(crate) fn supervised(
        command: &Command,
        address: SocketAddr,
        output: &Path,
    ) -> Result<Self, BoxError> {
        if !Path::new(command.get_program()).is_file() {
            return Err(format!("no file {}", command.get_program().display()).into());
        }
        let file = fs::File::create(output)?;
        let mut supervisor = Command::new(std::env::current_exe()?);
        supervisor.args(["role", "supervisor"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                supervisor.env(name, value);
            }
        }
        let process = supervisor.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).spawn()?;
        Ok(Child { address, process, output: Some(output.to_owned()) })
    }

    /// Waits until the port is open and, given a path, until that answers 200.
    pub(crate) fn wait_until_listening(&self, path: Option<&str>) -> Result<(), BoxError> {
        let give_up = Instant::now() + START;
        loop {
            let found = match path {
                None => TcpStream::connect(self.address).map(drop),
                Some(path) => self.get(path),
            };
            let Err(error) = found else { return Ok(()) };
            let gone = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))
                .map_or(true, |stat| stat.contains(") Z "));
            if gone || Instant::now() > give_up {
                let output = self.output.as_ref().and_then(|file| fs::read_to_string(file).ok());
                let output = output.unwrap_or_default();
                let what = if gone { "ended" } else { "does not answer" };
                return Err(format!("{what} ({error}). Its output:\n{output}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn get(&self, path: &str) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        let right = &start == b"HTTP/1.1 200";
        if right { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&start).into_owned())) }
    }

    /// CPU time of this process and its descendants so far. Threads that have ended are not in it; a proxy's stay.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let mut nanoseconds = 0;
        let mut processes = vec![self.process.id()];
        while let Some(pid) = processes.pop() {
            // What has gone since it was listed has no file any more.
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
                let on_cpu = read("schedstat").split(' ').next().and_then(|time| time.parse::<u64>().ok());
                nanoseconds += on_cpu.unwrap_or(0);
                processes
                    .extend(read("children").split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let give_up = Instant::now() + END;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address on loopback that was free a moment ago.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// A directory that goes when this does.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("bartizan-proxies-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Scratch(dir))
    }

    pub(crate) fn subdirectory(&self, name: &str) -> io::Result<PathBuf> {
        let dir = self.0.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
