"""FLUX.1 without torch."""

from triptych.backbones.family import Family

FAMILY = Family("flux", "FLUX.1", pipeline="FluxPipeline", prompt_tokenizer="tokenizer_2")
