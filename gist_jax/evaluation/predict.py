"""Outputs of a model for the examples of a split, as records and as CSV, and their metrics."""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from tqdm import tqdm

from gist_jax.data.fields import Example
from gist_jax.data.sources import Examples
from gist_jax.errors import UserError
from gist_jax.evaluation.rouge import score
from gist_jax.inference.language_model import LanguageModel
from gist_jax.inference.sampling import Sampling
from gist_jax.io import Path, read_csv, write_csv
from gist_jax.models import registry
from gist_jax.models.adapter import Adapter
from gist_jax.models.stack import Params, unstacked
from gist_jax.sharding import param_shardings
from gist_jax.training.config import adapter_config, evaluation_lengths, gist_token_counts
from gist_jax.training.distributed import is_first
from gist_jax.training.loop import Evaluate
from gist_jax.training.run import Run

FIELDS = ("instruction", "input", "reference", "prediction")


def predict(
    model: LanguageModel,
    examples: Examples,
    *,
    batch_size: int,
    max_new_tokens: int,
    max_input_length: int,
    description: str = "evaluating",
    between: Callable[[], None] = lambda: None,
) -> list[dict[str, str]]:
    """Greedy outputs from the whole prompts, under the mask the model was trained with.

    Prompts are batched by length, so that little is padded; records keep the order of the examples.
    A prompt longer than `max_input_length` is cut, see `PromptTemplate.prompt_ids`.

    Args:
      between: called after every batch; what it raises ends the work.
    """
    prompts = prompts_of(model, examples, max_input_length)
    with tqdm(
        total=len(prompts), desc=description, unit="example", leave=False, disable=not is_first()
    ) as bar:

        def tick(count: int) -> None:
            bar.update(count)
            between()

        ids = complete(model, prompts, batch_size, max_new_tokens, tick=tick)
    return [
        dict(zip(FIELDS, (e["instruction"], e["input"], e["output"], text), strict=True))
        for e, text in zip(examples, map(model.tokenizer.decode, ids), strict=True)
    ]


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
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    *,
    tick: Callable[[int], object],
) -> list[np.ndarray]:
    """The ids that continue prompts, int32 `[max_new_tokens]` each, in the order of the prompts.

    Args:
      tick: called with the number of prompts that are done, after every batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs = [np.empty(0, np.int32)] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [prompts[i] for i in chosen]
        written = model.generate_ids(rows, None, max_new_tokens, sampling, seed + start)
        for i, row in zip(chosen, written, strict=True):
            outputs[i] = row
        tick(len(chosen))
    return outputs


def read_predictions(path: Path) -> list[dict[str, str]]:
    """Reads a CSV with at least the columns reference and prediction.

    Raises:
      UserError: if it cannot be read, is empty or lacks a column.
    """
    records = read_csv(path)
    if not records or any(r.get("reference") is None or r.get("prediction") is None for r in records):
        raise UserError(f"{path} must have rows with the columns reference and prediction")
    return records


def evaluator(run: Run) -> Evaluate:
    """What the training loop calls to evaluate by generation.

    It generates on the mesh of the run, each device its share of the rows, for every validation split;
    the first process writes `predictions/STEP-SPLIT.csv` into the workdir. It returns metrics named
    "split/metric", in every process. Of a run with several numbers of gist tokens they are those of the
    largest, and "split_k1/metric" those of the smallest, k = 1.
    """
    options, splits = run.config.evaluation, run.validation_splits()
    mesh, counts = run.program.mesh, gist_token_counts(run.config)
    adapter = adapter_config(run.config)
    base = None if adapter is None else run.frozen
    # As in training, but for unrolled layers.
    of_base = run.program.params if adapter is None else run.program.frozen
    shapes = jax.eval_shape(unstacked, of_base)
    shardings = param_shardings(mesh, registry.logical_axes(run.model, stacked=False), shapes)

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
            param_shardings=shardings,
            mesh=mesh,
            adapter=None if adapter is None else Adapter(params, adapter),
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
                    write_csv(run.workdir / "predictions" / f"{step}-{name}.csv", records)
                values = score(records)
                metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate
