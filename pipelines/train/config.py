"""Settings of training. Training imports torch; reading the settings must not."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.plan import samples_per_micro_batch
from vlmodel.config import MAY_CHANGE, ConfigSection


class OptimizerConfig(ConfigSection):
    """Settings of AdamW (Loshchilov and Hutter, 2019) with linear warm-up and cosine decay."""

    backbone_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of the encoders' backbones; use far less (1e-5 to 1e-4) for pretrained ones."""
    head_lr: float = Field(1e-3, ge=0)
    """Peak learning rate of projections, fusion and decoder, and of low-rank adapters."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Of pretrained backbones each layer's rate is this times that of the layer behind it, and ``backbone_lr`` that of
    what follows the last layer: what is near the input changes least (Clark et al. 2020, arXiv:2003.10555). 0.65 to 0.9
    for a Transformer of 12 layers; 1 for one rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of all weights of two or more dimensions: matrices, kernels and embeddings, including
    those of positions. Vectors, such as biases and the weights of norms, have none."""
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2)
    """Decay of the two moments."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps over which the rate rises linearly from zero."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the end of the cosine."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""


class StepConfig(ConfigSection):
    """Settings of how a step is computed."""

    precision: str = Field("fp32", pattern="^(fp32|bf16)$")
    """fp32, or bf16 autocast."""
    compile: bool = False
    """Compile the model with torch.compile."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is then evaluated and served; 0 for none."""
    sync_batchnorm: bool = False
    """Synchronize BatchNorm statistics over the workers; needed for small batches per worker."""


class TeacherConfig(ConfigSection):
    """Settings of a trained model whose answers to the training rows are learned beside the right ones (Hinton et al.
    2015, arXiv:1503.02531).
    """

    model: str = ""
    """Model whose answers are learned: "champion", a version number or a model folder, of the same task, answers and
    image size; "" for none. A teacher that reads facts (model.knowledge) gets them, and its student answers without:
    what it has learned of them changes with a training only, and not with an edit of the store."""
    weight: float = Field(0.5, gt=0, le=1)
    """Share of the teacher's answers in the loss; the right answers have the rest."""
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Both models' scores are divided by this before their softmax: above 1, answers that the teacher holds possible
    count more."""


class TrainConfig(ConfigSection):
    """Settings of a training: its length, resources and checkpoints."""

    workers: int = Field(1, ge=1, json_schema_extra=MAY_CHANGE)
    """Workers (DDP ranks)."""
    sharding: Literal["off", "fsdp2"] = Field("off", json_schema_extra=MAY_CHANGE)
    """Whether each worker holds the whole model ("off", DDP) or a part of its weights, gradients and moments ("fsdp2"),
    so that workers train together what is larger than one GPU. Each still holds all weights in its host memory while it
    starts. A training may continue with the other, on another number of workers."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that each worker reserves, one with nccl; 0 trains on CPU, with gloo. With less than one, several trainings
    of one worker (`ablate.concurrent`, `tune.concurrent`) share a GPU; a worker uses one, however many it reserves."""
    cpus_per_worker: float = Field(1.0, gt=0, json_schema_extra=MAY_CHANGE)
    """CPUs that each worker reserves in Ray."""
    threads: int = Field(0, ge=0, json_schema_extra=MAY_CHANGE)
    """Torch threads of each worker; 0 shares the node's cores among its workers."""
    epochs: int = Field(1, ge=1)
    """Passes over the training split."""
    batch: int = Field(64, ge=1)
    """Images of one optimizer step over all workers, each with all its texts."""
    accumulation: int = Field(1, ge=1, json_schema_extra=MAY_CHANGE)
    """Micro-batches (forward and backward passes) of each worker in one step."""
    window: int = Field(65536, ge=1)
    """Smallest number of samples that are shuffled together; a window consists of whole shards. A window of all samples
    is a full shuffle, with a separate read for each sample."""
    shuffle_block: int = Field(1, ge=1)
    """Neighbouring samples of a tar that stay together when a window is shuffled; larger blocks need fewer reads, which
    object stores charge for, and shuffle less. See shuffle/ in the run's metrics."""
    evaluation_batch: int = Field(64, ge=1)
    """Images of one validation batch."""
    checkpoint_steps: int = Field(0, ge=0)
    """Steps between checkpoints, in addition to those after each epoch; 0 makes only these."""
    log_steps: int = Field(10, ge=1, json_schema_extra=MAY_CHANGE)
    """Steps between two records of metrics. Each record waits for the device."""
    max_failures: int = Field(3, ge=-1, json_schema_extra=MAY_CHANGE)
    """Worker failures after which the run fails; -1 restarts workers without limit."""
    patience: int = Field(0, ge=0, json_schema_extra=MAY_CHANGE)
    """Stop the training after this many validations in a row, one an epoch, without an improvement of the metric that
    selects the checkpoint to register. 0 runs all epochs. The learning rate schedule still covers all `epochs`."""
    feature_cache: Literal["off", "float32", "float16"] = Field("off", json_schema_extra=MAY_CHANGE)
    """If not "off", the output of frozen encoders (model.vision.frozen, model.language.frozen) is computed once and
    stored with this precision in <storage>/_features/, for every later job with the same encoder, evaluate and predict
    too. Then no epoch runs the backbone of such an encoder or decodes an image for it. Of texts the pooled vectors are
    stored if nothing reads more, else all tokens."""
    ledger: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Write which worker saw which sample in which step, to <storage>/<name>/ledger/."""
    init: str = ""
    """Model to begin with: "champion", a version number or a model folder, with the same model settings; its tokenizer
    and answers are used, and `vocabulary` is ignored. "" initializes new weights."""
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()
    augment: AugmentConfig = AugmentConfig()
    drop_streams: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """For inputs of the model by name the share of samples that are trained without it, as {audio = 0.2}: such a model
    answers better where an input is missing. Which these are depends on seed, epoch and sample alone."""

    @model_validator(mode="after")
    def _check_division_over_workers(self) -> Self:
        samples_per_micro_batch(self.batch, self.workers, self.accumulation)
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} with workers = {self.workers}: nccl joins no two workers "
                "on one GPU; set gpus_per_worker to 1, or workers to 1"
            )
        if self.sharding == "fsdp2" and self.step.compile:
            raise ValueError(
                "step.compile compiles the model as one, and with sharding='fsdp2' its layers are gathered while it "
                "runs; set step.compile to false, or sharding to 'off'"
            )
        return self
