"""What is marked on the fields of configs, and what follows from it."""

from __future__ import annotations

import pytest

from triptych.config.marks import (
    AMOUNT,
    CLEAN_ONLY,
    FOLDER,
    INPUT,
    OUTPUT,
    RESULT,
    RUNNING,
    SHARED,
    TRACED,
    Nature,
    marked,
)
from triptych.config.stage import StageConfig
from triptych.sampling.options import LOADED, SamplingConfig
from triptych.training.config import TrainConfig, settings_that_matter
from triptych.verbs import STAGES
from triptych.verbs.evaluate_config import EvaluateConfig, PairsConfig
from triptych.vton import lines
from triptych.vton.config import TryonConfig
from triptych.vton.files import alike

CONFIGS = {stage.name: stage.config_class() for stage in STAGES}


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_setting_has_one_nature(verb: str) -> None:
    for name, field in CONFIGS[verb].model_fields.items():
        natures = [mark for mark in field.metadata if isinstance(mark, Nature)]
        assert len(natures) == 1, f"{verb}.{name} is marked as {natures}; see config/marks.py"


@pytest.mark.parametrize("verb", CONFIGS)
def test_a_path_an_address_or_a_captioner_never_decides_the_result_by_its_name(verb: str) -> None:
    """A picture carries the settings of its result, and comes from anybody: it must not name what to open."""
    model = CONFIGS[verb]
    for name in marked(model, RESULT, AMOUNT, RUNNING):
        assert "Path" not in str(model.model_fields[name].annotation), f"{verb}.{name}"
    for name in marked(model, RESULT, AMOUNT, RUNNING, INPUT, OUTPUT, FOLDER):
        assert not any(word in name for word in ("url", "vlm", "key", "token_file", "secret")), (
            f"{verb}.{name}"
        )


def test_a_setting_is_shared_by_all_verbs_or_by_none() -> None:
    shared = {name for model in CONFIGS.values() for name in marked(model, SHARED)}
    assert shared == {
        *("work", "catalogue", "triptychs", "embeddings", "lora_folder"),
        *("model", "task", "quantize", "blocks_to_swap", "seed", "anyway", "allow_upload"),
    }
    for verb, model in CONFIGS.items():
        assert marked(model, SHARED) == shared & set(model.model_fields), verb


def test_folders_are_those_of_every_verb() -> None:
    for model in CONFIGS.values():
        assert marked(model, FOLDER) == set(StageConfig.model_fields)


def test_what_a_training_must_keep() -> None:
    """As it was when each of these was a list of its own."""
    free = {
        *StageConfig.model_fields,
        *("checkpointing_steps", "checkpoints_total_limit", "num_validation_images"),
        *("logging_dir", "tracker_name", "device", "gradient_checkpointing", "blocks_to_swap", "shard_base"),
        *("loss_masks", "max_train_steps", "epochs", "init_lora", "validation_model"),
    }
    assert marked(TrainConfig, RESULT) == set(TrainConfig.model_fields) - free
    assert set(settings_that_matter(TrainConfig(early_stopping_patience=1))) == marked(TrainConfig, RESULT)
    assert set(settings_that_matter(TrainConfig())) == marked(TrainConfig, RESULT) - {"validation_steps"}
    assert marked(TrainConfig, CLEAN_ONLY) == {
        *("context_lora", "context_reading", "context_dropout", "noise_levels", "context_placement"),
    }


def test_what_a_measurement_follows_from() -> None:
    free = {
        *StageConfig.model_fields,
        *("mode", "base", "out", "lora", "device", "blocks_to_swap", "context_cache_gib"),
        *PairsConfig.model_fields,
    }
    assert marked(EvaluateConfig, RESULT) == set(EvaluateConfig.model_fields) - free


def test_what_is_loaded_and_what_is_for_clean_context_alone() -> None:
    assert {
        *("model", "lora", "lora_scale", "device", "dtype", "quantize", "blocks_to_swap"),
        "context_cache_gib",
    } == LOADED
    assert marked(SamplingConfig, CLEAN_ONLY) == {
        *("drop_background", "token_bucket", "context_reading", "context_cache_gib"),
        "context_guidance_scale",
    }


def test_what_the_lines_of_a_batch_may_set_and_what_those_sampled_together_share() -> None:
    assert {
        *StageConfig.model_fields,
        *LOADED,
        *(
            "vlm_model",
            "base_url",
            "allow_upload",
            "parser",
            "batch",
            "batch_size",
            "out",
            "mask_out",
            "anyway",
        ),
        *("engine", "address", "object_store_gib"),
    } == lines.SHARED
    own = {
        "person",
        "polygon",
        "polygon_label",
        "mask",
        "prompt",
        "caption",
        "seed",
        "num_images_per_prompt",
        "out",
    }
    own |= {"rough", "grow", "expand", "mask_out"}
    assert set(alike(TryonConfig())) == set(TryonConfig.model_fields) - own


def test_what_plan_counts_anew() -> None:
    assert marked(TrainConfig, TRACED) == {
        *("batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "context", "context_lora"),
        *("context_reading", "context_placement", "noise_levels", "rank", "lora_dropout"),
    }
