"""The configuration: YAML by hand, `base:` and `studies:` expanded, pydantic models with every default."""

from inversescope.config.entries import merge
from inversescope.config.load import load_config, parse_config
from inversescope.config.schema import Config, ExperimentConfig, to_schema
from inversescope.config.show import show

__all__ = [
    "Config",
    "ExperimentConfig",
    "load_config",
    "merge",
    "parse_config",
    "show",
    "to_schema",
]
