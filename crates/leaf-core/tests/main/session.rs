//! A session whose requests and replies are lost and come late: what the program prints and reads is the same all the same.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use leaf_core::job::ProgramExit;
use leaf_core::moment::Moment;
use leaf_core::session::wire::{FromRunner, Input, Kept, Stream, ToRunner};
use leaf_core::session::{
    Action, Asked, Attach, Control, Do, Phase, Read, Reason, Reply, Session, SessionTask, State,
};
use proptest::prelude::*;

/// A runner of a program that prints this and takes all that it is given.
struct Runner {
    prints: Vec<u8>,
    pull: Option<(u64, usize, u64)>,
    taken: Vec<u8>,
    room: u64,
    end_at: Option<u64>,
    exited: bool,
    cancelled: bool,
}

struct World {
    session: Session,
    runner: Runner,
    now: Moment,
    tickets: u64,
    number: u64,
    replies: BTreeMap<u64, Reply>,
}

fn task() -> SessionTask {
    SessionTask {
        key: String::new(),
        terminal: None,
        linger_seconds: None,
        detached_seconds: None,
    }
}

impl World {
    fn new(prints: Vec<u8>) -> Self {
        Self {
            session: Session::new(&task(), "n0".to_owned(), Moment::default()),
            runner: Runner {
                prints,
                pull: None,
                taken: Vec::new(),
                room: 10,
                end_at: None,
                exited: false,
                cancelled: false,
            },
            now: Moment::default(),
            tickets: 0,
            number: 0,
            replies: BTreeMap::new(),
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo = VecDeque::from(actions);
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Reply(ticket, reply) => {
                    assert!(
                        self.replies.insert(ticket, reply).is_none(),
                        "it is answered twice"
                    );
                }
                Action::Cancel => self.runner.cancelled = true,
                Action::Tell(
                    ToRunner::Pull {
                        stdout, max, number, ..
                    },
                    _,
                ) => {
                    self.runner.pull = Some((stdout.expect("an offset"), max, number));
                    todo.extend(self.give());
                }
                Action::Tell(ToRunner::Input { offset }, bytes) => {
                    assert_eq!(
                        offset,
                        self.runner.taken.len() as u64,
                        "input has no gap and comes once"
                    );
                    assert!(bytes.len() as u64 <= self.runner.room);
                    self.runner.taken.extend(bytes);
                    let taken = FromRunner::Taken(self.input());
                    todo.extend(self.session.hear(taken, Vec::new()));
                }
                Action::Tell(ToRunner::EndInput { at }, _) => self.runner.end_at = Some(at),
                Action::Tell(..) => {}
            }
        }
    }

    fn input(&self) -> Input {
        Input {
            end: self.runner.taken.len() as u64,
            room: self.runner.room,
            closed: false,
        }
    }

    fn give(&mut self) -> Vec<Action> {
        let Some((from, max, number)) = self.runner.pull else {
            return Vec::new();
        };
        let from = usize::try_from(from).expect("small");
        let bytes: Vec<u8> = self.runner.prints.iter().skip(from).take(max).copied().collect();
        if bytes.is_empty() {
            return Vec::new();
        }
        self.runner.pull = None;
        let output = FromRunner::Output {
            stream: Stream::Stdout,
            offset: from as u64,
            number,
        };
        self.session.hear(output, bytes)
    }

    fn hello(&mut self) {
        // As the runner does at each new connection.
        self.runner.pull = None;
        let hello = FromRunner::Hello {
            version: 1,
            stdout: Kept {
                first: 0,
                end: self.runner.prints.len() as u64,
            },
            stderr: Kept::default(),
            input: self.input(),
            exit: self.runner.exited.then_some(ProgramExit::Code(0)),
        };
        let actions = self.session.hear(hello, Vec::new());
        self.carry_out(actions);
    }

    fn attach(&mut self) -> String {
        let attach = Attach {
            versions: vec![1],
            chunk_bytes: 1024,
            size: None,
        };
        let mut nonce = "-".to_owned();
        loop {
            self.tickets += 1;
            let (ticket, fresh) = (
                self.tickets,
                (format!("a{}", self.tickets), format!("n{}", self.tickets)),
            );
            let actions = self.session.attach(ticket, &nonce, &attach, fresh, self.now);
            self.carry_out(actions);
            let Some(Reply::Attached(attached)) = self.replies.remove(&ticket) else {
                panic!("it is answered")
            };
            match attached.nonce {
                Some(given) => nonce = given,
                None => {
                    self.number = 0;
                    return attached.attachment;
                }
            }
        }
    }

    /// Sends a request, and returns its reply if there is one at once.
    fn ask(&mut self, attachment: &str, asked: Asked) -> Option<Reply> {
        self.number += 1;
        self.tickets += 1;
        let ticket = self.tickets;
        let actions = self.session.ask(ticket, attachment, self.number, asked, self.now);
        self.carry_out(actions);
        self.replies.remove(&ticket)
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        let actions = self.session.tick(self.now, true);
        self.carry_out(actions);
    }
}

fn read(stdout: u64, state: u64, again: bool) -> Asked {
    Asked::Read(Read {
        stdout,
        stderr: 0,
        state,
        take: true,
        again,
        wait_ms: 1000,
    })
}

proptest! {
    /// `losses` says of each request whether it, or its reply, is lost.
    #[test]
    fn all_that_is_printed_and_typed_arrives_once_and_in_order(
        prints in proptest::collection::vec(any::<u8>(), 0..6000),
        types in proptest::collection::vec(any::<u8>(), 0..300),
        losses in proptest::collection::vec(any::<bool>(), 1..60),
        restarts in proptest::collection::vec(any::<u8>(), 1..20),
    ) {
        let mut world = World::new(prints.clone());
        let mut attachment = world.attach();
        world.hello();
        let (mut got, mut typed, mut state, mut again) = (Vec::new(), 0_u64, 0, false);
        let mut exited = false;
        let mut done = false;
        for step in 0..2000 {
            let is_lost = step < 200 && losses[step % losses.len()];
            if step < 200 && restarts[step % restarts.len()] == 0 {
                // leafd begins anew: it knows nothing of the client.
                world.session = Session::new(&task(), format!("r{step}"), world.now);
                world.hello();
            }
            if got.len() == prints.len() && typed == types.len() as u64 && !exited {
                exited = true;
                world.runner.exited = true;
                let exit = FromRunner::Exited {
                    exit: ProgramExit::Code(0),
                    stdout: prints.len() as u64,
                    stderr: 0,
                };
                let actions = world.session.hear(exit, Vec::new());
                world.carry_out(actions);
            }
            let reply = world.ask(&attachment, read(got.len() as u64, state, again));
            again = is_lost || reply.is_none();
            if let (Some(Reply::Output { output, state: new }), false) = (reply, is_lost) {
                if let Some((_, offset, bytes)) = output {
                    prop_assert!(bytes.len() <= 1024);
                    if offset == got.len() as u64 {
                        got.extend(bytes);
                    } else {
                        again = true;
                    }
                }
                match new {
                    Some(State { phase: Phase::Ended { reason: Reason::Restarted, .. }, .. }) => {
                        attachment = world.attach();
                        (state, again) = (0, false);
                    }
                    Some(State { phase: Phase::Ended { reason, .. }, .. }) => {
                        prop_assert_eq!(reason, Reason::Done);
                        done = true;
                        break;
                    }
                    Some(new) => state = new.number,
                    None => {}
                }
            }
            let begin = usize::try_from(typed).expect("small");
            let part: Vec<u8> = types[begin..].iter().take(40).copied().collect();
            if !part.is_empty() {
                let reply = world.ask(&attachment, Asked::Write { offset: typed, bytes: part });
                if let (Some(Reply::Written(written)), false) = (reply, is_lost) {
                    typed = typed.max(written.end.min(types.len() as u64));
                }
            }
            world.pass(1);
        }
        prop_assert!(done, "{} of {}, {typed} of {}", got.len(), prints.len(), types.len());
        prop_assert_eq!(got, prints);
        prop_assert_eq!(&world.runner.taken, &types);
        prop_assert!(!world.runner.cancelled);
    }
}

#[test]
fn a_client_that_is_silent_is_gone_and_its_program_ended_after_the_time_that_counts() {
    let mut world = World::new(Vec::new());
    let attachment = world.attach();
    world.hello();
    // A host that was suspended: ten seconds count.
    for _ in 0..4 {
        world.pass(10);
    }
    assert!(world.session.is_attached());
    world.pass(6);
    assert!(!world.session.is_attached());
    for _ in 0..5 {
        world.pass(3600);
    }
    assert!(!world.runner.cancelled, "50 of 60 s count");
    world.pass(10);
    assert!(world.runner.cancelled);
    let reply = world.ask(&attachment, read(0, 0, false));
    assert!(
        matches!(reply, Some(Reply::Output { state: Some(state), .. }) if state.phase == Reason::Lost.phase()),
        "it is told"
    );
}

#[test]
fn one_that_detached_has_a_day_and_controls_are_done_once_in_their_order() {
    let mut world = World::new(Vec::new());
    let attachment = world.attach();
    world.hello();
    let control = |number, what| Asked::Control(Control { number, what });
    let done = |reply| match reply {
        Some(Reply::Done(done)) => done.done,
        other => panic!("{other:?}"),
    };
    assert_eq!(done(world.ask(&attachment, control(2, Do::Detach))), 0);
    assert_eq!(done(world.ask(&attachment, control(1, Do::EndInput(7)))), 1);
    assert_eq!(done(world.ask(&attachment, control(1, Do::EndInput(9)))), 1);
    assert_eq!(world.runner.end_at, Some(7));
    assert_eq!(done(world.ask(&attachment, control(2, Do::Detach))), 2);
    for _ in 0..8630 {
        world.pass(10);
    }
    assert!(!world.runner.cancelled);
    for _ in 0..20 {
        world.pass(10);
    }
    assert!(world.runner.cancelled);
}
