"""A profiler trace of chosen steps."""

from pathlib import Path

import jax

from experiments.settings import Settings, SettingsError


class Profile:
    """Traces the steps from `first` to `last`, counted from 1; without them, none."""

    def __init__(self, folder: Path = Path(), steps: tuple[int, int] | None = None):
        """Traces go into `folder`, as TensorBoard and Perfetto read them."""
        self.folder = folder
        self.first, self.last = steps or (0, 0)
        self.tracing = False

    def limit(self, done: int, count: int) -> int:
        """So many steps at most until the trace begins or ends."""
        ahead = [bound - done for bound in (self.first - 1, self.last) if bound > done]
        return min([count, *ahead])

    def before(self, done: int) -> None:
        """Begins the trace before its first step, or before those that are left when a run goes on."""
        if not self.tracing and self.first <= done + 1 <= self.last:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True

    def after(self, done: int) -> None:
        """Ends the trace after its last step."""
        if self.tracing and done == self.last:
            jax.profiler.stop_trace()
            self.tracing = False


def profile_of(settings: Settings, total_steps: int) -> Profile:
    """The trace that the settings ask for."""
    if settings.profile and settings.profile[1] > total_steps:
        first, last = settings.profile
        raise SettingsError(
            f"--profile {first} {last} goes beyond the last step: give at most {total_steps}, or "
            "more --epochs"
        )
    return Profile(settings.out / "profile", settings.profile)
