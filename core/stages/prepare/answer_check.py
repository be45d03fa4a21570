"""Answer verification: a solution that does not come to its reference answer is left out."""

from __future__ import annotations

from attrs import define

from modelwright.core.api.components import Metric
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import Example, Output
from modelwright.core.stages.prepare.quality import Removal


@define
class Verification:
    """Grades what the assistant says last against the example's answer, by the metric that will grade the model.

    Examples without a reference answer stay: there is nothing to compare with.

    Attributes:
        metric: the metric.
        metric_name: its name, for messages.
    """

    metric: Metric
    metric_name: str
    name: str = "unverified"

    def look(self, example: Example) -> Removal | None:
        """See `Check`.

        Raises:
            ModelwrightError: the metric failed.
        """
        said = [message for message in example.messages if message.role == "assistant"]
        if example.answer is None or not said:
            return None
        output = Output(text=said[-1].content, thinking=said[-1].thinking)
        try:
            score = self.metric.score(example, [output])
        except ModelwrightError:
            raise
        except Exception as error:
            raise ModelwrightError(
                f"metric {self.metric_name!r} failed on {example.source}: {type(error).__name__}: {error}"
            ) from error
        if score.verdict == "correct":
            return None
        return Removal(
            f"{self.metric_name}: {score.reason or score.verdict}", {"answer": example.answer, "text": output.text}
        )
