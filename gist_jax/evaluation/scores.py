"""Scores of a model on every validation split of its run."""

from gist_jax.evaluation.predict import predict, write_predictions
from gist_jax.evaluation.rouge import score
from gist_jax.inference.language_model import LanguageModel
from gist_jax.models.stack import Params
from gist_jax.training.config import evaluation_lengths
from gist_jax.training.loop import Evaluate
from gist_jax.training.run import Run


def evaluator(run: Run) -> Evaluate:
    """What the training loop calls to evaluate by generation.

    It generates for every validation split, writes `predictions/STEP-SPLIT.csv` into the workdir,
    and returns scores named "split/metric".
    """
    options, splits = run.config.evaluation, run.validation_splits()

    def evaluate(params: Params, step: int) -> dict[str, float]:
        model = LanguageModel.from_params(
            params,
            run.model,
            run.prompts.tokenizer,
            num_gist_tokens=run.config.num_gist_tokens,
            condition=run.config.condition,
            dtype=run.config.dtype,
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
            write_predictions(run.workdir / "predictions" / f"{step}-{split}.csv", records)
            values = score(records)
            scores |= {f"{split}/{metric}": value for metric, value in values.items()}
        return scores

    return evaluate
