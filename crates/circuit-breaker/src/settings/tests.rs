use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn invalid(settings: &Settings) -> InvalidSettings {
    settings.check().expect_err("it can never work")
}

#[test]
fn what_can_never_work_is_refused() {
    let good = || Settings::consecutive(1);
    let window = |window| invalid(&good().or_window(window));
    let share = |window: Window| window.failures(50);
    assert_eq!(invalid(&Settings::consecutive(0)), InvalidSettings::Consecutive);
    assert_eq!(invalid(&good().open_for(Duration::ZERO)), InvalidSettings::OpenFor);
    for (factor, longest) in [(0.9, 99), (f64::NAN, 99), (f64::INFINITY, 99), (2.0, 29)] {
        assert_eq!(invalid(&good().growing(factor, longest * SECOND)), InvalidSettings::Growth);
    }
    for jitter in [-0.1, 1.1, f64::NAN] {
        assert_eq!(invalid(&good().jitter(jitter)), InvalidSettings::Jitter);
    }
    for n in [0, MOST + 1] {
        assert_eq!(invalid(&good().probes(n)), InvalidSettings::Probes);
        assert_eq!(invalid(&good().successes(n)), InvalidSettings::Successes);
    }
    assert_eq!(invalid(&good().probe_timeout(Duration::ZERO)), InvalidSettings::ProbeTimeout);
    for spans in [Window::of_calls(0), Window::of_calls(1_000_001), Window::of_time(SECOND / 1001)] {
        assert_eq!(window(share(spans)), InvalidSettings::Window);
    }
    for calls in [0, 11] {
        assert_eq!(window(share(Window::of_calls(10)).min_calls(calls)), InvalidSettings::MinCalls);
    }
    assert_eq!(window(Window::of_calls(10)), InvalidSettings::Share);
    for percent in [0, 101] {
        assert_eq!(window(Window::of_calls(10).failures(percent)), InvalidSettings::Share);
        assert_eq!(window(share(Window::of_calls(10)).slow(SECOND, percent)), InvalidSettings::Share);
    }
}

#[test]
fn the_extremes_that_can_work_are_taken() {
    let settings = Settings::consecutive(u32::MAX)
        .or_window(Window::of_calls(1_000_000).failures(100))
        .or_window(Window::of_calls(1).slow(Duration::ZERO, 1))
        .or_window(Window::of_time(Duration::MAX).min_calls(u32::MAX).failures(1))
        .open_for(Duration::MAX)
        .growing(1.0, Duration::MAX)
        .jitter(1.0)
        .probes(MOST)
        .successes(MOST)
        .probe_timeout(None);
    assert_eq!(settings.check(), Ok(()));
}
