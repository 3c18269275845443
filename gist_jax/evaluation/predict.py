"""Outputs of a model for the examples of a split, as records and as CSV, and their metrics."""

from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from gist_jax.data.fields import Example
from gist_jax.data.sources import Examples
from gist_jax.evaluation.loss import loss_evaluator
from gist_jax.evaluation.predictions import FIELDS, MORE, Record
from gist_jax.evaluation.rouge import score
from gist_jax.inference.continuous import Row, write_rows
from gist_jax.inference.language_model import LanguageModel
from gist_jax.io import write_csv
from gist_jax.models.adapter import Adapter
from gist_jax.models.stack import Params
from gist_jax.sharding import for_writing
from gist_jax.training.config import (
    adapter_config,
    evaluation_lengths,
    gist_token_counts,
    mask_config,
)
from gist_jax.training.distributed import is_first
from gist_jax.training.loop import Evaluate
from gist_jax.training.run import Run
from gist_jax.workdir import PREDICTIONS


def predict(
    model: LanguageModel,
    examples: Examples,
    *,
    batch_size: int,
    max_new_tokens: int,
    max_input_length: int,
    description: str = "evaluating",
    between: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Greedy outputs from the whole prompts, under the mask the model was trained with.

    Records keep the order of the examples. A prompt longer than `max_input_length` is cut, see
    `PromptTemplate.prompt_ids`.

    Args:
      between: called whenever an output is done; what it raises ends the work.

    Returns:
      Records with FIELDS and MORE, see `gist_jax.evaluation.predictions`.
    """
    prompts = prompts_of(model, examples, max_input_length)
    rows = [Row(ids, None, max_new_tokens, number=i) for i, ids in enumerate(prompts)]
    with tqdm(
        total=len(prompts), desc=description, unit="example", leave=False, disable=not is_first()
    ) as bar:

        def tick() -> None:
            bar.update()
            between()

        complete(model, rows, batch_size, tick=tick)
    return [_record(model, example, row) for example, row in zip(examples, rows, strict=True)]


def _record(model: LanguageModel, example: Example, row: Row) -> Record:
    """What is kept of an output: the texts, and how they came about."""
    text = model.tokenizer.decode(row.output)
    texts = example["instruction"], example["input"], example["output"], text
    template = model.template
    instruction = len(template.instruction_ids(example["instruction"])) - len(template.gist_ids)
    length = len(row.output) - (row.reason == "eos")
    about = map(str, (model.num_gist_tokens, instruction, len(row.ids), length, row.reason))
    return dict(zip((*FIELDS, *MORE), (*texts, *about), strict=True))


def prompts_of(
    model: LanguageModel, examples: Iterable[Example], max_input_length: int
) -> list[list[int]]:
    """The ids of whole prompts, each cut to a length as `PromptTemplate.prompt` does it."""
    template = model.template
    return [
        template.prompt_ids(example["instruction"], example["input"], max_input_length)
        for example in examples
    ]


def complete(
    model: LanguageModel, rows: Sequence[Row], batch_size: int, *, tick: Callable[[], object]
) -> None:
    """Writes the outputs of rows, `batch_size` at a time.

    Args:
      tick: called whenever a row is done.
    """
    # The longest first: then there is room for all others, and what comes together is padded little.
    order = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    for row in write_rows(model.programs, order, batch_size):
        if row.reason:
            tick()


def evaluator(run: Run) -> Evaluate:
    """What the training loop calls to evaluate, by generation or by loss, as the config has it.

    It generates on the devices of the run, see `sharding.for_writing`, for every validation split; the
    first process writes `predictions/STEP-SPLIT.csv` into the workdir. It returns metrics named
    "split/metric", in every process. Of a run with several numbers of gist tokens they are those of the
    largest, and "split_k1/metric" those of the smallest, k = 1.
    """
    if run.config.evaluation.kind == "loss":
        return loss_evaluator(run)
    options, splits = run.config.evaluation, run.validation_splits()
    counts = gist_token_counts(run.config)
    mesh = for_writing(run.program.mesh, run.model.num_heads, run.model.intermediate_size)
    adapter = adapter_config(run.config)
    base = None if adapter is None else run.frozen

    def evaluate(params: Params, step: int, between: Callable[[], None]) -> dict[str, float]:
        model = LanguageModel.from_params(
            params if base is None else base,
            run.model,
            run.template.tokenizer,
            num_gist_tokens=counts[-1],
            gist_token_choices=counts if len(counts) > 1 else (),
            condition=run.config.condition,
            template=run.template.name,
            dtype=run.config.dtype,
            mesh=mesh,
            adapter=None if adapter is None else Adapter(params, adapter),
            mask=mask_config(run.config),
        )
        metrics: dict[str, float] = {}
        for split, examples in splits.items():
            for k in sorted({counts[0], counts[-1]}, reverse=True):
                name = split if k == counts[-1] else f"{split}_k{k}"
                records = predict(
                    model.with_gist_tokens(k),
                    examples,
                    batch_size=options.batch_size,
                    **evaluation_lengths(options, split),
                    description=name,
                    between=between,
                )
                if is_first():
                    write_csv(run.workdir / PREDICTIONS / f"{step}-{name}.csv", records)
                values = score(records)
                metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate
