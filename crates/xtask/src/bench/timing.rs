//! Takes measurements of programs in turn.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::command::line;

/// A measurement, in seconds.
pub(super) type Timed<'a> = &'a mut dyn FnMut() -> Result<f64>;

/// Takes each measurement `rounds` times, alternating: A B A B …
pub(super) fn in_turn(rounds: usize, measurements: &mut [Timed<'_>]) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(rounds); measurements.len()];
    for _ in 0..rounds {
        for (measure, times) in measurements.iter_mut().zip(&mut times) {
            times.push(measure()?);
        }
    }
    Ok(times)
}

/// Runs a command to its end; returns its run time in seconds.
pub(super) fn timed(command: &mut Command) -> Result<f64> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let shown = line(command);
    let began = Instant::now();
    let output = command.output().with_context(|| format!("can't run {shown}"))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "{shown} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(seconds)
}
