//! [`Chaos`]: the faults of a run, drawn from a seed, and the token requests that they account for.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, mpsc::Receiver},
    thread::{self, JoinHandle},
    time::Duration,
};

use fastrand::Rng;

use super::{
    LEASE_TTL, SEATS, SWITCHER, TOKEN_LIFETIME,
    adobe::{Adobe, Manner, Tenant},
    fleet::Fleet,
    journal::Journal,
    proxy::Proxy,
    server::Server,
};

/// The earliest refresh of a token that lives this long: at half of its life, less the jitter of an
/// eighth.
const MIN_REFRESH: Duration = TOKEN_LIFETIME.saturating_mul(3).checked_div(8).unwrap();

/// The time between two revocations of a tenant. Processes believe two 401s a minute.
const BETWEEN_REVOCATIONS: Duration = Duration::from_secs(40);

/// The store is left alone in every other season, in which the fleet has to share whatever else happens.
const SEASON: Duration = Duration::from_secs(30);

pub(crate) struct Chaos {
    pub(crate) fleet: Fleet,
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) adobe: Arc<Adobe>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) busy: Mutex<HashSet<Part>>,
    pub(crate) ledger: Mutex<Ledger>,
    /// From here on no fault begins.
    pub(crate) end: Duration,
}

/// A part of the system in which at most one fault is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Redis,
    Network,
    Ims,
    Seat(usize),
    Secret(Tenant),
    Trap(Tenant),
    GrantTrap,
    Tokens(Tenant),
}

/// The faults so far, as far as they cost token requests.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The tenant of each killed process, and the time.
    kills: Vec<(Tenant, Duration)>,
    /// By tenant, as are all counts below.
    stops: [u32; 2],
    revocations: [u32; 2],
    last_revocation: [Option<Duration>; 2],
    rotations: [u32; 2],
    switches: [u32; 2],
    /// When the store could not be used, or only with difficulty.
    store: Vec<Span>,
    /// When IMS failed.
    ims: Vec<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    from: Duration,
    until: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill { seat: usize, pause: Duration },
    KillHolder { tenant: Tenant, pause: Duration },
    Stop { seat: usize, time: Duration },
    StopHolder { tenant: Tenant, time: Duration },
    StopGranted { time: Duration },
    RedisPaused { time: Duration },
    RedisEmpty { down: Duration },
    RedisOld { age: Duration, down: Duration, revoke: Option<Tenant> },
    Delay { round_trip: Duration, time: Duration },
    Cut,
    BlackHole { time: Duration, cut: bool },
    Revoke { tenant: Tenant },
    Rotate { tenant: Tenant, grace: Duration },
    Switch { pause: Option<Duration> },
    HalfWritten { seat: usize, pause: Duration },
    Ims { manner: Manner, time: Duration },
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

impl Fault {
    fn draw(rng: &mut Rng) -> Self {
        let seat = rng.usize(..SEATS.len());
        let tenant = Tenant::ALL[rng.usize(..2)];
        let lease = u64::try_from(LEASE_TTL.as_millis()).unwrap();
        match rng.u32(..30) {
            0..=2 => Self::Kill { seat, pause: millis(rng, 0..3_000) },
            3..=4 => Self::KillHolder { tenant, pause: millis(rng, 0..3_000) },
            5..=6 => Self::Stop { seat, time: millis(rng, lease + 500..2 * lease + 2_000) },
            7 => Self::StopHolder { tenant, time: millis(rng, lease + 500..2 * lease + 2_000) },
            8..=9 => Self::StopGranted { time: millis(rng, lease + 1_000..lease + 4_000) },
            10 => Self::RedisPaused { time: millis(rng, 500..6_000) },
            11 => Self::RedisEmpty { down: millis(rng, 0..3_000) },
            12..=13 => Self::RedisOld {
                age: millis(rng, 3_000..16_000),
                down: millis(rng, 0..3_000),
                revoke: rng.bool().then_some(tenant),
            },
            14..=15 => Self::Delay {
                round_trip: Duration::from_millis(if rng.bool() { 60 } else { 150 }),
                time: millis(rng, 3_000..12_000),
            },
            16..=17 => Self::Cut,
            18 => Self::BlackHole { time: millis(rng, 1_000..6_000), cut: rng.bool() },
            19..=20 => Self::Revoke { tenant },
            21 => Self::Rotate { tenant, grace: millis(rng, 5_000..9_000) },
            22..=23 => Self::Switch { pause: rng.bool().then(|| millis(rng, 10..2_000)) },
            24 => Self::HalfWritten { seat, pause: millis(rng, 10..3_000) },
            _ => {
                let manner = match rng.u32(..6) {
                    0 => Manner::Slow(millis(rng, 200..1_200)),
                    1 => Manner::Throttle(rng.u64(1..5)),
                    2 => Manner::Unavailable,
                    3 => Manner::Hang,
                    4 => Manner::RefuseConnections,
                    _ => Manner::RejectSecrets,
                };
                Self::Ims { manner, time: millis(rng, 1_000..8_000) }
            }
        }
    }

    fn is_of_the_store(self) -> bool {
        self.parts().iter().any(|part| matches!(part, Part::Redis | Part::Network))
    }

    /// The parts that the fault needs for itself.
    fn parts(self) -> Vec<Part> {
        match self {
            Self::Kill { seat, .. } | Self::Stop { seat, .. } => vec![Part::Seat(seat)],
            Self::KillHolder { tenant, .. } | Self::StopHolder { tenant, .. } => {
                vec![Part::Trap(tenant)]
            }
            Self::StopGranted { .. } => vec![Part::GrantTrap],
            Self::RedisPaused { .. } | Self::RedisEmpty { .. } => vec![Part::Redis],
            Self::RedisOld { revoke, .. } => {
                let revoked = revoke.map(Part::Tokens);
                [Part::Redis].into_iter().chain(revoked).collect()
            }
            Self::Delay { .. } | Self::Cut | Self::BlackHole { .. } => vec![Part::Network],
            Self::Revoke { tenant } => vec![Part::Tokens(tenant)],
            // Files are written by one fault at a time.
            Self::Rotate { tenant, .. } => {
                vec![Part::Secret(tenant), Part::Secret(tenant.other())]
            }
            Self::Switch { .. } | Self::HalfWritten { .. } => {
                vec![Part::Secret(Tenant::A), Part::Secret(Tenant::B)]
            }
            Self::Ims { .. } => vec![Part::Ims],
        }
    }
}

impl Chaos {
    /// Draws faults, and waits for their ends.
    pub(crate) fn run(self: &Arc<Self>, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut running = Vec::new();
        while self.journal.elapsed() < self.end && self.journal.violations().is_empty() {
            thread::sleep(millis(&mut rng, 200..2_000));
            let fault = Fault::draw(&mut rng);
            let is_store_calm = (self.journal.elapsed().as_secs() / SEASON.as_secs()) % 2 == 0;
            if is_store_calm && fault.is_of_the_store() {
                continue;
            }
            running.extend(self.start(fault));
            running.retain(|task| !task.is_finished());
        }
        for task in running {
            task.join().unwrap();
        }
    }

    /// Starts a fault, unless another one is active in the same part.
    fn start(self: &Arc<Self>, fault: Fault) -> Option<JoinHandle<()>> {
        let parts = fault.parts();
        if parts.iter().any(|part| self.was_revoked_lately(*part)) {
            return None;
        }
        let guard = self.occupy(parts)?;
        self.journal.fault(format!("{fault:?}"));
        let chaos = self.clone();
        Some(thread::spawn(move || {
            chaos.execute(fault, guard);
            chaos.journal.fault(format!("    over: {fault:?}"));
        }))
    }

    fn was_revoked_lately(&self, part: Part) -> bool {
        let Part::Tokens(tenant) = part else { return false };
        let last = self.ledger.lock().unwrap().last_revocation[tenant as usize];
        last.is_some_and(|last| self.journal.elapsed() < last + BETWEEN_REVOCATIONS)
    }

    /// `None` if one of the parts is occupied.
    fn occupy(self: &Arc<Self>, parts: Vec<Part>) -> Option<Occupied> {
        let mut busy = self.busy.lock().unwrap();
        if parts.iter().any(|part| busy.contains(part)) {
            return None;
        }
        busy.extend(&parts);
        drop(busy);
        Some(Occupied { chaos: self.clone(), parts })
    }

    fn execute(self: &Arc<Self>, fault: Fault, occupied: Occupied) {
        let (fleet, server, proxy) = (&self.fleet, &self.server, &self.proxy);
        match fault {
            Fault::Kill { seat, pause } => self.kill(seat, pause),
            Fault::KillHolder { tenant, pause } => {
                if let Some((seat, _occupied)) = self.trapped(&self.adobe.trap(tenant)) {
                    self.kill(seat, pause);
                }
            }
            Fault::Stop { seat, time } => self.stop(seat, time),
            Fault::StopHolder { tenant, time } => {
                if let Some((seat, _occupied)) = self.trapped(&self.adobe.trap(tenant)) {
                    self.stop(seat, time);
                }
            }
            Fault::StopGranted { time } => {
                if let Some((seat, _occupied)) = self.trapped(&proxy.trap()) {
                    self.stop(seat, time);
                }
            }
            Fault::RedisPaused { time } => self.store_fault(|| {
                server.signal("-STOP");
                thread::sleep(time);
                server.signal("-CONT");
            }),
            Fault::RedisEmpty { down } => self.store_fault(|| {
                server.stop();
                server.forget();
                thread::sleep(down);
                server.run();
            }),
            Fault::RedisOld { age, down, revoke } => {
                server.save();
                thread::sleep(age);
                self.store_fault(|| {
                    server.stop();
                    if let Some(tenant) = revoke {
                        // Refused once where it is cached, and once where the old state brings it.
                        self.revoke(tenant);
                        self.ledger.lock().unwrap().revocations[tenant as usize] += 1;
                    }
                    server.restore();
                    thread::sleep(down);
                    server.run();
                });
            }
            Fault::Delay { round_trip, time } => self.store_fault(|| {
                proxy.set_delay(round_trip);
                thread::sleep(time);
                proxy.set_delay(Duration::ZERO);
            }),
            Fault::Cut => self.store_fault(|| proxy.cut()),
            Fault::BlackHole { time, cut } => self.store_fault(|| {
                proxy.set_black_hole(true);
                thread::sleep(time);
                if cut {
                    proxy.cut();
                }
                proxy.set_black_hole(false);
            }),
            Fault::Revoke { tenant } => self.revoke(tenant),
            Fault::Rotate { tenant, grace } => self.rotate(tenant, grace),
            Fault::Switch { pause } => {
                let tenant = self.adobe.tenant(SWITCHER).other();
                // Only after the process has followed the last switch.
                if self.adobe.expect_switch(SWITCHER, tenant) {
                    self.ledger.lock().unwrap().switches[tenant as usize] += 1;
                    fleet.write_file(SWITCHER, tenant, pause);
                }
            }
            Fault::HalfWritten { seat, pause } => {
                let tenant = self.adobe.tenant(seat);
                fleet.write_file(seat, tenant, Some(pause));
            }
            Fault::Ims { manner, time } => {
                let from = self.journal.elapsed();
                self.adobe.set_manner(manner);
                thread::sleep(time);
                self.adobe.set_manner(Manner::Normal);
                let until = self.journal.elapsed();
                self.ledger.lock().unwrap().ims.push(Span { from, until });
            }
        }
        drop(occupied);
    }

    fn kill(&self, seat: usize, pause: Duration) {
        let kill = (self.adobe.tenant(seat), self.journal.elapsed());
        self.ledger.lock().unwrap().kills.push(kill);
        self.fleet.kill(seat);
        thread::sleep(pause);
        self.fleet.start(seat);
    }

    fn stop(&self, seat: usize, time: Duration) {
        self.ledger.lock().unwrap().stops[self.adobe.tenant(seat) as usize] += 1;
        self.fleet.freeze(seat, time);
    }

    /// The seat of the process that goes into the trap: it is about to request a token.
    fn trapped(self: &Arc<Self>, trap: &Receiver<usize>) -> Option<(usize, Occupied)> {
        let seat = loop {
            match trap.recv_timeout(Duration::from_millis(100)) {
                Ok(seat) => break seat,
                Err(_) if self.journal.elapsed() < self.end => {}
                Err(_) => return None,
            }
        };
        let occupied = self.occupy(vec![Part::Seat(seat)])?;
        self.journal.fault(format!("    the holder is {seat}"));
        Some((seat, occupied))
    }

    fn store_fault(&self, fault: impl FnOnce()) {
        let from = self.journal.elapsed();
        fault();
        let until = self.journal.elapsed();
        self.ledger.lock().unwrap().store.push(Span { from, until });
    }

    fn revoke(&self, tenant: Tenant) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.revocations[tenant as usize] += 1;
        ledger.last_revocation[tenant as usize] = Some(self.journal.elapsed());
        drop(ledger);
        self.adobe.revoke(tenant);
    }

    /// Gives the tenant a new secret. IMS accepts the old one for `grace` after the last file was
    /// written.
    fn rotate(&self, tenant: Tenant, grace: Duration) {
        let number = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.rotations[tenant as usize] += 1;
            ledger.rotations[tenant as usize]
        };
        let (old, new) = (self.adobe.secret(tenant), format!("secret-{number}-{tenant:?}"));
        self.adobe.set_secrets(tenant, &[&old, &new]);
        for seat in (0..SEATS.len()).filter(|seat| self.adobe.tenant(*seat) == tenant) {
            self.fleet.write_file(seat, tenant, None);
            thread::sleep(Duration::from_millis(200));
        }
        thread::sleep(grace);
        self.adobe.set_secrets(tenant, &[&new]);
    }
}

/// Releases the parts when it is dropped.
struct Occupied {
    chaos: Arc<Chaos>,
    parts: Vec<Part>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut busy = self.chaos.busy.lock().unwrap();
        for part in &self.parts {
            busy.remove(part);
        }
    }
}

/// How long after a fault of the store its effects last: connecting again, and the end of the attempt
/// that met the fault.
const AFTERMATH: Duration = Duration::from_secs(3);

/// How long after it was killed a process has started again and requested its first token.
const MAX_RESTART: Duration = Duration::from_secs(8);

/// The shortest first pause after a failure, of a process alone and of a fleet. Later ones double.
const FIRST_PAUSE: Duration = Duration::from_millis(60);

impl Ledger {
    /// The most tokens that IMS issues to a tenant with this many members, in a run of this length.
    ///
    /// | cause | tokens |
    /// | --- | --- |
    /// | the life of a token | one per earliest refresh, and the first |
    /// | the store is away | one per member, and per earliest refresh if it lasts longer: each goes on alone |
    /// | a process is killed | one, whose answer is lost; one of the new process, if the store is away |
    /// | a process is stopped | two: its own, and that of the process that takes over |
    /// | a revocation | two: a process that was due may have requested one at the same time |
    /// | a new secret | three: for the first member with the new one, and for a member with the old one before and after |
    /// | a switch to the tenant | one |
    pub(crate) fn max_issued(&self, tenant: Tenant, members: u32, elapsed: Duration) -> u32 {
        let away = self.away();
        let at = tenant as usize;
        let kills = self.kills.iter().filter(|(killed, _)| *killed == tenant);
        let kill_cost = |time: Duration| {
            let restart = Span { from: time, until: time + MAX_RESTART };
            1 + u32::from(away.iter().any(|span| span.overlap(restart).is_some()))
        };
        lives(elapsed)
            + members * refreshes_within(away.clone())
            + kills.map(|(_, time)| kill_cost(*time)).sum::<u32>()
            + 2 * self.stops[at]
            + 2 * self.revocations[at]
            + 3 * self.rotations[at]
            + self.switches[at]
    }

    /// The most token requests of a tenant that fail: in each fault of IMS those of one process, since
    /// its failures are shared, and those of each member while the store is away. A process that is
    /// stopped may request a token with its old secret.
    pub(crate) fn max_failed(&self, tenant: Tenant, members: u32) -> u32 {
        let away = self.away();
        let failing = self.ims.iter().map(|ims| {
            let overlaps = away.iter().filter_map(|store| store.overlap(*ims));
            let alone = overlaps.max().map_or(0, |overlap| members * attempts(overlap));
            attempts(ims.until - ims.from) + alone
        });
        failing.sum::<u32>() + self.stops[tenant as usize]
    }

    /// The times in which the store could not be relied on.
    fn away(&self) -> Vec<Span> {
        self.store.iter().map(|span| span.prolonged(AFTERMATH)).collect()
    }

    /// The most token requests of a tenant in a quiet time of this length.
    pub(crate) fn max_quiet_requests(time: Duration) -> u32 {
        lives(time)
    }
}

impl Span {
    fn prolonged(self, time: Duration) -> Self {
        Self { until: self.until + time, ..self }
    }

    /// How long both last; `None` if they do not meet.
    fn overlap(self, other: Self) -> Option<Duration> {
        self.until.min(other.until).checked_sub(self.from.max(other.from))
    }
}

/// The most refreshes in this time, the first token included.
fn lives(time: Duration) -> u32 {
    (time.as_secs_f64() / MIN_REFRESH.as_secs_f64()) as u32 + 1
}

/// The most attempts in a failure of this length, by a backoff that doubles.
fn attempts(time: Duration) -> u32 {
    let pauses = time.as_secs_f64() / FIRST_PAUSE.as_secs_f64();
    (pauses + 1.0).log2() as u32 + 2
}

/// The most refreshes of one process within these spans, each at least [`MIN_REFRESH`] after the last.
fn refreshes_within(mut spans: Vec<Span>) -> u32 {
    spans.sort_by_key(|span| span.from);
    let (mut count, mut earliest) = (0, Duration::ZERO);
    for span in spans {
        let mut at = earliest.max(span.from);
        while at <= span.until {
            count += 1;
            at += MIN_REFRESH;
            earliest = at;
        }
    }
    count
}
