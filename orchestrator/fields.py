"""Types of fields of a sweep file: metrics, figures of the paper, names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl"]
METRICS: tuple[Metric, ...] = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The figures of a table, in percent, in the order in which papers print them."""
PaperMetric = Literal[Metric, "test_AP", "test_AP50", "test_AP75", "test_APs", "test_APm", "test_APl"]
"""What a figure of the paper may be: of the validation split, or with ``test_`` of the test split."""
JOURNAL_METRICS = (
    *METRICS,
    *("loss", "loss_cls", "loss_reg", "loss_quality", "loss_dfl", "loss_reg_initial", "lr", "positives_per_gt"),
    *("positive_iou", "loss_reg_fixed", "images_per_second", "data_wait", "memory_gb", "inference_ms", "eval_seconds"),
)
"""What a figure may show over the steps."""


def _text(value: Any) -> Any:
    """Numbers in table cells and names are kept as they are written."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text), StringConstraints(min_length=1)]


def _given(value: Any) -> Any:
    """Figures that are null aren't known."""
    return {key: figure for key, figure in value.items() if figure is not None} if isinstance(value, dict) else value


def _in_percent(figures: dict[PaperMetric, float]) -> dict[PaperMetric, float]:
    if figures and all(0 < figure < 1 for figure in figures.values()):
        key, figure = next(iter(figures.items()))
        raise ValueError(f"figures are in percent, as papers print them: write {key}: {100 * figure:g} for {figure:g}")
    return figures


Figures = Annotated[
    dict[PaperMetric, Annotated[float, Field(ge=0, le=100)]], BeforeValidator(_given), AfterValidator(_in_percent)
]
"""Figures of the paper by metric, in percent; what is null is left out."""
