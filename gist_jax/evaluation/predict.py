"""Outputs of a model for the examples of a split, as records and as CSV, and their metrics."""

import jax
from tqdm import tqdm

from gist_jax.data.sources import Examples
from gist_jax.errors import UserError
from gist_jax.evaluation.rouge import score
from gist_jax.inference.language_model import LanguageModel
from gist_jax.io import Path, read_csv, write_csv
from gist_jax.models import registry
from gist_jax.models.stack import Params, unstacked
from gist_jax.sharding import param_shardings
from gist_jax.training.config import evaluation_lengths
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
) -> list[dict[str, str]]:
    """Greedy outputs from the whole prompts, under the mask the model was trained with.

    Prompts are batched by length, so that little is padded; records keep the order of the examples.
    A prompt longer than `max_input_length` is cut, see `PromptTemplate.prompt_ids`.
    """
    prompts = []
    for example in examples:
        fields = example["instruction"], example["input"]
        prompts.append(model.template.prompt_ids(*fields, max_input_length))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    with tqdm(
        total=len(prompts), desc=description, unit="example", leave=False, disable=not is_first()
    ) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids = model.generate_ids([prompts[i] for i in chosen], None, max_new_tokens)
            for i, row in zip(chosen, ids, strict=True):
                texts[i] = model.tokenizer.decode(row)
            bar.update(len(chosen))
    return [
        dict(zip(FIELDS, (e["instruction"], e["input"], e["output"], text), strict=True))
        for e, text in zip(examples, texts, strict=True)
    ]


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
    "split/metric", in every process.
    """
    options, splits = run.config.evaluation, run.validation_splits()
    mesh = run.program.mesh
    # As in training, but for unrolled layers.
    shapes = jax.eval_shape(unstacked, run.program.params)
    shardings = param_shardings(mesh, registry.logical_axes(run.model, stacked=False), shapes)

    def evaluate(params: Params, step: int) -> dict[str, float]:
        model = LanguageModel.from_params(
            params,
            run.model,
            run.template.tokenizer,
            num_gist_tokens=run.config.num_gist_tokens,
            condition=run.config.condition,
            template=run.template.name,
            dtype=run.config.dtype,
            param_shardings=shardings,
            mesh=mesh,
        )
        metrics: dict[str, float] = {}
        for split, examples in splits.items():
            records = predict(
                model,
                examples,
                batch_size=options.batch_size,
                **evaluation_lengths(options, split),
                description=split,
            )
            if is_first():
                write_csv(run.workdir / "predictions" / f"{step}-{split}.csv", records)
            values = score(records)
            metrics |= {f"{split}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate
