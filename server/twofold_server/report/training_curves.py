"""The charts of the training: dev score, guard checks and loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from twofold_server.report.document import DevPoint, GuardPoint, LossPoint, StageCurves
from twofold_server.report.formatting import plural, score
from twofold_server.report.plot import Scale, box, chart, dot, line, segment, word

ACTIONS = {"none": "within the allowed range", "restore": "the best state was restored", "leave": "the stage was ended"}
MAX_DOTS = 60
"""With more points, the dev score is a line without dots."""


@dataclass(frozen=True)
class TrainingCurves:
    """The points of all stages."""

    stages: tuple[StageCurves, ...]

    @property
    def stage_names(self) -> list[str]:
        """The names of the stages, without repetitions."""
        return list(dict.fromkeys(stage.name for stage in self.stages))

    @property
    def dev(self) -> list[DevPoint]:
        """The scores on dev examples."""
        return [point for stage in self.stages for point in stage.dev]

    @property
    def guard(self) -> list[GuardPoint]:
        """The checks of the guard."""
        return [check for stage in self.stages for check in stage.guard]

    @property
    def loss(self) -> list[LossPoint]:
        """The losses."""
        return [point for stage in self.stages for point in stage.loss]

    def dev_chart(self) -> Markup:
        """Draw the dev score, with a line where a stage begins."""
        values = [100 * point.value for point in self.dev]
        across, up = self._orders(), Scale.around(values, maximum=100.0, flipped=True)

        def shapes() -> Iterator[Markup]:
            yield from _grid(up)
            for number, stage in enumerate(self.stages):
                points = [(across(point.order), up(100 * point.value)) for point in stage.dev]
                if len(points) > 1:
                    yield line(points, "dev")
                if len(values) <= MAX_DOTS:
                    titles = [f"{stage.name}: {score(point.value)}" for point in stage.dev]
                    yield from (dot(point, "dev", title) for point, title in zip(points, titles, strict=True))
                if number and points:
                    yield segment((points[0][0], 0), (points[0][0], 100), "stage")

        label = f"dev score, first {values[0]:.1f}, best {max(values):.1f}"
        return chart(shapes(), _left(up), label=label, class_="curve")

    def guard_chart(self) -> Markup:
        """Draw the protected score at each check, with the range that the guard allows."""
        checks = self.guard
        baseline, floor = 100 * checks[0].baseline, 100 * (checks[0].baseline - checks[0].allowed)
        up = Scale.around([floor, baseline, *(100 * check.value for check in checks)], maximum=100.0, flipped=True)
        across = self._orders()
        points = [(across(check.order), up(100 * check.value)) for check in checks]

        def shapes() -> Iterator[Markup]:
            yield box((0, up(baseline)), (100, up(floor)), "allowed", "allowed by the guard")
            yield from _grid(up)
            yield segment((0, up(baseline)), (100, up(baseline)), "zero", "baseline")
            yield segment((0, up(floor)), (100, up(floor)), "edge", "lowest allowed score")
            if len(points) > 1:
                yield line(points, "guard")
            for check, point in zip(checks, points, strict=True):
                yield dot(point, check.action, f"{score(check.value)}: {ACTIONS.get(check.action, check.action)}")

        label = f"protected dev score at {plural(len(checks), 'check')}"
        return chart(shapes(), _left(up), label=label, class_="curve")

    def loss_chart(self) -> Markup:
        """Draw the loss over the training steps."""
        points = self.loss
        up = Scale.around([0.0, *(point.value for point in points)], flipped=True)
        across = Scale.within(point.step for point in points)
        drawn = line([(across(point.step), up(point.value)) for point in points], "loss")
        steps = [word(across(tick), 100, f"{tick:g}", "tick") for tick in across.ticks]
        label = f"loss from {points[0].value:.3f} to {points[-1].value:.3f}"
        return chart([*_grid(up), drawn], [*_left(up), *steps], label=label, class_="curve")

    def _orders(self) -> Scale:
        orders = [*(point.order for point in self.dev), *(check.order for check in self.guard)]
        return Scale(min(orders), max(*orders, min(orders) + 1), 1)


def _grid(up: Scale) -> list[Markup]:
    return [segment((0, up(tick)), (100, up(tick)), "grid") for tick in up.ticks]


def _left(up: Scale) -> list[Markup]:
    return [word(0, up(tick), f"{tick:g}", "left") for tick in up.ticks]
