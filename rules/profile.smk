# A profile names stages. What it sets for one holds for each of its rules, of which loops make several. Included behind all rules.
from functools import partial

from inversescope.workflow.stages import stage_of


def group_of(stage: str, wildcards) -> str | None:
    """The group into which the profile puts a stage's jobs; it is not known before they are."""
    return workflow.group_settings.overwrite_groups.get(stage)


for one in workflow.rules:

    stage, settings = stage_of(one.name), workflow.resource_settings
    if stage != one.name:

        one.resources.update(settings._parsed_overwrite_resources.get(stage, {}))
        if stage in settings._parsed_overwrite_threads:
            one.resources["_cores"] = settings._parsed_overwrite_threads[stage]
        one.group = partial(group_of, stage)
