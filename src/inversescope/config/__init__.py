"""The configuration: YAML by hand, `base:` and `studies:` expanded, pydantic models with every default."""

from inversescope.config.entries import merge
from inversescope.config.load import load_config, parse_config, read_layers
from inversescope.config.methods import (
    BUILT_IN,
    BackboneConfig,
    DecodingConfig,
    FcrConfig,
    FigureConfig,
    KernelConfig,
    PatchingConfig,
    ProbeConfig,
    SaeConfig,
    SamplingConfig,
    VariantConfig,
)
from inversescope.config.schema import Config, ExperimentConfig, StudyConfig, to_schema
from inversescope.config.show import show
from inversescope.config.targets import (
    ArchitectureConfig,
    CheckpointConfig,
    GemmaScopeConfig,
    LabellerConfig,
    ModelConfig,
    TargetCandidate,
    TargetTraining,
    VocabularyConfig,
)
from inversescope.config.tasks import (
    AdditionConfig,
    CountingConfig,
    IOIConfig,
    RavelConfig,
    TextConfig,
    TextFeatureConfig,
    TranslationConfig,
)

__all__ = [
    "AdditionConfig",
    "ArchitectureConfig",
    "BUILT_IN",
    "BackboneConfig",
    "CheckpointConfig",
    "Config",
    "CountingConfig",
    "DecodingConfig",
    "ExperimentConfig",
    "FcrConfig",
    "FigureConfig",
    "GemmaScopeConfig",
    "IOIConfig",
    "KernelConfig",
    "LabellerConfig",
    "ModelConfig",
    "PatchingConfig",
    "ProbeConfig",
    "RavelConfig",
    "SaeConfig",
    "SamplingConfig",
    "StudyConfig",
    "TargetCandidate",
    "TargetTraining",
    "TextConfig",
    "TextFeatureConfig",
    "TranslationConfig",
    "VariantConfig",
    "VocabularyConfig",
    "load_config",
    "merge",
    "parse_config",
    "read_layers",
    "show",
    "to_schema",
]
