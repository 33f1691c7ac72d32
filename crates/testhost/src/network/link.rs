//! The link between a machine and the switch: whether it is cut, slow or lossy, and what that does to a frame.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// The longest delay of a link: more would only fill the memory of this process.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How much waits for a link with a limited rate, in bytes, as in the buffer of a router; what comes then is lost.
const BUFFER: u64 = 256 << 10;

/// A change of a link. It holds for both directions; of a ping, both the request and the reply pass the link.
///
/// As text, on the command line: `cut`, `mend`, `slow MS`, `lossy PERCENT`, `rate KBIT`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LinkChange {
    /// Nothing passes any more, and what is on its way is lost. The machines don't notice it: their cards have a carrier.
    Cut,
    /// The link is again as it was at first: everything passes, at once.
    Mend,
    /// A frame takes this long to pass, at most a minute.
    Delay(Duration),
    /// This fraction of the frames is lost, from 0 to 1.
    Loss(f64),
    /// So many bits a second pass; 0 takes the limit away. 256 KiB wait for it, and what comes then is lost.
    Rate(u64),
}

impl LinkChange {
    fn check(self) -> Result<()> {
        match self {
            Self::Cut | Self::Mend | Self::Rate(_) => Ok(()),
            Self::Delay(delay) => {
                ensure!(
                    delay <= LONGEST_DELAY,
                    "a link can't be slower than {} s",
                    LONGEST_DELAY.as_secs()
                );
                Ok(())
            }
            Self::Loss(fraction) => {
                ensure!(
                    (0.0..=1.0).contains(&fraction),
                    "a link loses between none (0) and all (1) of its frames, not {fraction}"
                );
                Ok(())
            }
        }
    }
}

impl FromStr for LinkChange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let what = words.next().unwrap_or_default();
        let mut number = |unit: &str| {
            let word = words.next().with_context(|| format!("{what} needs {unit}"))?;
            let number: f64 = word
                .parse()
                .with_context(|| format!("{word:?} is not a number"))?;
            ensure!(
                number.is_finite() && number >= 0.0,
                "{word} is not a possible number of {unit}"
            );
            anyhow::Ok(number)
        };
        let change = match what {
            "cut" => Self::Cut,
            "mend" => Self::Mend,
            "slow" => {
                let delay = Duration::try_from_secs_f64(number("milliseconds")? / 1000.0);
                Self::Delay(delay.context("such a delay has no end")?)
            }
            "lossy" => Self::Loss(number("per cent")? / 100.0),
            // A number with a fraction is rounded; one that is too large is as good as no limit.
            "rate" => Self::Rate((number("kilobits a second")? * 1000.0).round() as u64),
            _ => bail!(
                "{text:?} is not a change of a link; there are: cut, mend, slow MS, lossy PERCENT, rate KBIT"
            ),
        };
        ensure!(words.next().is_none(), "{text:?} has a word too many");
        change.check()?;
        Ok(change)
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("cut"),
            Self::Mend => f.write_str("mend"),
            Self::Delay(delay) => write!(f, "slow {}", delay.as_secs_f64() * 1000.0),
            Self::Loss(fraction) => write!(f, "lossy {}", fraction * 100.0),
            Self::Rate(rate) => write!(f, "rate {}", *rate as f64 / 1000.0),
        }
    }
}

/// The condition of a link.
#[derive(Debug, Default)]
pub(super) struct Link {
    is_cut: bool,
    delay: Duration,
    loss: f64,
    /// In bits a second; 0 is no limit.
    rate: u64,
    /// From the machine to the switch, and to the machine.
    directions: [Direction; 2],
}

#[derive(Debug)]
struct Direction {
    /// The state of the generator that chooses the frames that are lost.
    random: u64,
    /// When the last frame has left the sender, at the limited rate.
    free_at: Duration,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            random: 0,
            free_at: Duration::ZERO,
        }
    }
}

/// The direction in which a frame passes a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToSwitch,
    ToMachine,
}

impl Link {
    /// Returns the link of a machine; its losses depend on the seed and the name.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let mut state = seed;
        for byte in name.bytes() {
            state = random(&mut state) ^ u64::from(byte);
        }
        let mut direction = || Direction {
            random: random(&mut state),
            ..Direction::default()
        };
        Self {
            directions: [direction(), direction()],
            ..Self::default()
        }
    }

    /// Changes its condition.
    ///
    /// # Errors
    /// If the change has an impossible number; the link is as before.
    pub(super) fn change(&mut self, change: LinkChange) -> Result<()> {
        change.check()?;
        match change {
            LinkChange::Cut => self.is_cut = true,
            LinkChange::Mend => {
                (self.is_cut, self.delay, self.loss) = (false, Duration::ZERO, 0.0);
                self.limit(0);
            }
            LinkChange::Delay(delay) => self.delay = delay,
            LinkChange::Loss(fraction) => self.loss = fraction,
            LinkChange::Rate(rate) => self.limit(rate),
        }
        Ok(())
    }

    fn limit(&mut self, rate: u64) {
        self.rate = rate;
        for direction in &mut self.directions {
            direction.free_at = Duration::ZERO;
        }
    }

    /// Returns when a frame that is sent now arrives at the other end; `None` if it is lost.
    pub(super) fn pass(&mut self, now: Duration, way: Way, bytes: usize) -> Option<Duration> {
        let direction = &mut self.directions[way as usize];
        if self.is_cut || (self.loss > 0.0 && fraction(&mut direction.random) < self.loss) {
            return None;
        }
        if self.rate == 0 {
            return Some(now + self.delay);
        }
        let takes = |bytes: u64| Duration::from_secs_f64(bytes as f64 * 8.0 / self.rate as f64);
        let begins = direction.free_at.max(now);
        if begins - now > takes(BUFFER) {
            return None;
        }
        direction.free_at = begins + takes(bytes as u64);
        Some(direction.free_at + self.delay)
    }
}

/// Returns the next number of a generator (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Returns the next number from 0 to 1, without 1.
fn fraction(state: &mut u64) -> f64 {
    (random(state) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    /// Passes `count` frames, and returns which are lost.
    fn lost(link: &mut Link, way: Way, count: usize) -> Vec<bool> {
        (0..count).map(|_| link.pass(NOW, way, 1500).is_none()).collect()
    }

    fn lossy(seed: u64, name: &str, fraction: f64) -> Link {
        let mut link = Link::new(seed, name);
        link.change(LinkChange::Loss(fraction)).expect("a fraction");
        link
    }

    #[test]
    fn a_whole_link_passes_everything_at_once_and_a_cut_one_nothing() {
        let mut link = Link::new(1, "a");
        for way in [Way::ToSwitch, Way::ToMachine] {
            assert_eq!(link.pass(NOW, way, 1500), Some(NOW));
        }
        link.change(LinkChange::Cut).expect("cut");
        for way in [Way::ToSwitch, Way::ToMachine] {
            assert_eq!(link.pass(NOW, way, 1500), None);
        }
        link.change(LinkChange::Mend).expect("mended");
        assert_eq!(link.pass(NOW, Way::ToSwitch, 1500), Some(NOW));
    }

    #[test]
    fn the_same_seed_loses_the_same_frames_and_another_seed_name_or_direction_others() {
        let of = |seed, name, way| lost(&mut lossy(seed, name, 0.3), way, 1000);
        let first = of(7, "leaf-1", Way::ToSwitch);
        assert_eq!(first, of(7, "leaf-1", Way::ToSwitch));
        assert_ne!(first, of(8, "leaf-1", Way::ToSwitch));
        assert_ne!(first, of(7, "leaf-2", Way::ToSwitch));
        assert_ne!(first, of(7, "leaf-1", Way::ToMachine));
        let count = first.iter().filter(|lost| **lost).count();
        assert!((250..350).contains(&count), "{count} of 1000 with 0.3");
    }

    #[test]
    fn all_or_none_is_lost_at_the_ends_of_the_scale() {
        assert!(
            lost(&mut lossy(1, "a", 1.0), Way::ToSwitch, 100)
                .iter()
                .all(|lost| *lost)
        );
        assert!(
            !lost(&mut lossy(1, "a", 0.0), Way::ToSwitch, 100)
                .iter()
                .any(|lost| *lost)
        );
    }

    #[test]
    fn frames_at_a_limited_rate_follow_each_other_and_wait_before_the_delay() {
        let mut link = Link::new(1, "a");
        link.change(LinkChange::Rate(8_000)).expect("a rate");
        link.change(LinkChange::Delay(Duration::from_secs(5)))
            .expect("a delay");
        let seconds = |seconds| Some(NOW + Duration::from_secs(seconds));
        assert_eq!(link.pass(NOW, Way::ToSwitch, 1000), seconds(6));
        assert_eq!(link.pass(NOW, Way::ToSwitch, 2000), seconds(8));
        assert_eq!(
            link.pass(NOW, Way::ToMachine, 1000),
            seconds(6),
            "the other direction has its own rate"
        );
        let later = NOW + Duration::from_secs(10);
        assert_eq!(
            link.pass(later, Way::ToSwitch, 1000),
            seconds(16),
            "time without frames is not saved up"
        );
    }

    #[test]
    fn what_does_not_fit_into_the_buffer_of_a_limited_rate_is_lost() {
        let mut link = Link::new(1, "a");
        link.change(LinkChange::Rate(8_000)).expect("a rate");
        let passed = lost(&mut link, Way::ToSwitch, 1000)
            .iter()
            .filter(|lost| !**lost)
            .count();
        // The buffer, and the one that begins when it is just full.
        assert_eq!(
            passed as u64,
            BUFFER.div_ceil(1500) + u64::from(BUFFER.is_multiple_of(1500))
        );
        link.change(LinkChange::Rate(0)).expect("no limit");
        assert_eq!(link.pass(NOW, Way::ToSwitch, 1500), Some(NOW));
    }

    #[test]
    fn changes_are_read_from_a_command_line_and_impossible_ones_refused() {
        for (text, change) in [
            ("cut", LinkChange::Cut),
            ("mend", LinkChange::Mend),
            ("slow 250", LinkChange::Delay(Duration::from_millis(250))),
            ("slow 0.5", LinkChange::Delay(Duration::from_micros(500))),
            ("lossy 12.5", LinkChange::Loss(0.125)),
            ("rate 64", LinkChange::Rate(64_000)),
        ] {
            let read: LinkChange = text.parse().expect(text);
            assert_eq!(read, change);
            assert_eq!(read.to_string(), text);
        }
        for (text, says) in [
            ("", "there are: cut"),
            ("slow", "needs milliseconds"),
            ("slow x", "not a number"),
            ("slow -1", "not a possible number"),
            ("slow 61000", "slower than 60 s"),
            ("slow 1e300", "no end"),
            ("lossy 101", "not 1.01"),
            ("lossy NaN", "not a possible number"),
            ("rate", "needs kilobits"),
            ("cut now", "a word too many"),
        ] {
            let error = text.parse::<LinkChange>().expect_err(text);
            assert!(format!("{error:#}").contains(says), "{text:?}: {error:#}");
        }
    }
}
