"""Scores of a model on every validation split of its run."""

import jax

from gist_jax.evaluation.predict import predict, write_predictions
from gist_jax.evaluation.rouge import score
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models import family
from gist_jax.models.stack import Params, unstacked
from gist_jax.training.config import evaluation_lengths
from gist_jax.training.distributed import is_first
from gist_jax.training.loop import Evaluate
from gist_jax.training.run import Run
from gist_jax.training.sharding import param_shardings


def evaluator(run: Run) -> Evaluate:
    """What the training loop calls to evaluate by generation.

    It generates on the mesh of the run, each device its share of the rows, for every validation split;
    the first process writes `predictions/STEP-SPLIT.csv` into the workdir. It returns scores named
    "split/metric", in every process.
    """
    options, splits = run.config.evaluation, run.validation_splits()
    mesh = run.program.mesh
    # As in training, but for layers that are not stacked.
    shapes = jax.eval_shape(unstacked, run.program.params)
    params_on = param_shardings(mesh, family.logical_axes(run.model, stacked=False), shapes)

    def evaluate(params: Params, step: int) -> dict[str, float]:
        model = LanguageModel.from_params(
            params,
            run.model,
            run.prompts.tokenizer,
            num_gist_tokens=run.config.num_gist_tokens,
            condition=run.config.condition,
            dtype=run.config.dtype,
            params_on=params_on,
            mesh=mesh,
        )
        scores = {}
        for split, examples in splits.items():
            records = predict(
                model,
                examples,
                batch_size=options.batch_size,
                **evaluation_lengths(options, split),
                description=split,
            )
            if is_first():
                write_predictions(run.workdir / "predictions" / f"{step}-{split}.csv", records)
            values = score(records)
            scores |= {f"{split}/{metric}": value for metric, value in values.items()}
        return scores

    return evaluate
