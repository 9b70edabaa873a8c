"""What is not given: filled in by the data set, the task, and what was tuned."""

from experiments import methods
from experiments.data import with_defaults
from experiments.models import check_model
from experiments.settings import Settings, check_ranges
from experiments.tasks import check_task
from experiments.tuned import with_tuned


def resolved(settings: Settings) -> Settings:
    """Checks the settings, and fills in every default: tuned, the data set's, the task's."""
    check_ranges(settings)
    methods.check_used(settings)
    settings = with_tuned(with_defaults(settings))
    check_model(settings)
    check_task(settings)
    methods.check(settings)
    return settings
