"""The configuration: its pydantic models, and how YAML files become one."""

from inversescope.config.schema import *  # noqa: F403
