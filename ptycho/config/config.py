"""Everything about typed settings, under the path that clients import.

The other modules of ``ptycho.config`` own the classes, the rules, the legacy bridge and the YAML reading.
"""

from ptycho.config.architectures import ARCHITECTURES
from ptycho.config.classes import (
    DEFAULT_N_GROUPS,
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
)
from ptycho.config.effects import validate_effects
from ptycho.config.legacy import KEY_MAPPINGS, dataclass_to_legacy_dict, update_legacy_dict
from ptycho.config.settings import (
    build_config,
    default_settings,
    flat_settings,
    load_yaml_config,
    merge_settings,
)
from ptycho.config.validation import (
    validate_execution_config,
    validate_inference_config,
    validate_model_config,
    validate_training_config,
)

__all__ = [
    "ARCHITECTURES", "DEFAULT_N_GROUPS", "KEY_MAPPINGS", "InferenceConfig", "ModelConfig",
    "PyTorchExecutionConfig", "TrainingConfig", "build_config", "dataclass_to_legacy_dict",
    "default_settings", "flat_settings", "load_yaml_config", "merge_settings", "update_legacy_dict",
    "validate_effects", "validate_execution_config", "validate_inference_config", "validate_model_config",
    "validate_training_config",
]  # fmt: skip
