"""How one configuration is trained: by the method's own schedule, or in the steps that a budget leaves."""

from __future__ import annotations

from planners.plan import Configuration
from planners.schedule import Measurement, Training
from planners.scheduling.cost import MODEST_WIDTH

METHOD_EPOCHS = 1000
METHOD_STEPS_PER_EPOCH = 250
GRADIENT_CLIP = 12.0
FOREGROUND_SHARE = 0.33
WEIGHT_DECAY = 3e-5
MODEST_RATE = 4e-3
"""Peak learning rate of AdamW at 16 features (docs/decisions/0041)."""


def method_training(configuration: Configuration, measured: Measurement) -> Training:
    """1000 epochs of 250 steps, Nesterov SGD with momentum 0.99, polynomial decay (method section 7.1)."""
    return Training(
        configuration=configuration.name,
        base_features=measured.base_features,
        batch_size=configuration.batch_size,
        num_steps=METHOD_EPOCHS * METHOD_STEPS_PER_EPOCH,
        steps_per_epoch=METHOD_STEPS_PER_EPOCH,
        precision=measured.precision,
        optimiser="sgd",
        peak_learning_rate=0.01,
        momentum=0.99,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=0,
        curve="polynomial",
        gradient_clip=GRADIENT_CLIP,
        deep_supervision=configuration.deep_supervision,
        mirroring=bool(configuration.mirror_axes),
        augmentation=True,
        foreground_share=FOREGROUND_SHARE,
        validation_batches=50,
    )


def short_learning_rate(base_features: int) -> float:
    """Peak rate of AdamW: that of 16 features, less in proportion for wider networks, never more."""
    return MODEST_RATE * min(1.0, MODEST_WIDTH / base_features)


def budgeted_training(
    configuration: Configuration, measured: Measurement, num_steps: int, *, mirroring: bool, compiled: bool = False
) -> Training:
    """The method's training made short: AdamW, a warm-up, cosine decay with every step (docs/decisions/0041)."""
    steps_per_epoch = max(1, min(METHOD_STEPS_PER_EPOCH, round(num_steps / 12)))
    return method_training(configuration, measured).model_copy(
        update={
            "batch_size": measured.batch_size,
            "num_steps": num_steps,
            "compiled": compiled,
            "steps_per_epoch": steps_per_epoch,
            "optimiser": "adamw",
            "peak_learning_rate": short_learning_rate(measured.base_features),
            "momentum": 0.9,
            "curve": "cosine",
            "warmup_steps": min(50, num_steps // 10),
            "mirroring": mirroring,
            "validation_batches": min(4, steps_per_epoch),
        }
    )
