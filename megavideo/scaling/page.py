"""The page of a fit: one file, with its pictures in it."""

from __future__ import annotations

from megavideo.observe.page import data_uri, render
from megavideo.scaling.charts import draw_fit
from megavideo.scaling.points import Points
from megavideo.scaling.report import FitReport
from megavideo.scaling.words import (
    LAW_HEAD,
    OPTIMUM_HEAD,
    PARABOLA_HEAD,
    SHAPE_HEAD,
    law_rows,
    optimum_rows,
    parabola_rows,
    power_words,
    shape_rows,
)


def page_text(report: FitReport, points: Points, written: str) -> str:
    """The page's HTML; `points` are those that were fitted."""
    best = report.chosen.optimum
    charts = [
        (picture.title, picture.about, data_uri("image/png", picture.png), picture.wide)
        for picture in draw_fit(report, points)
    ]
    values = {
        "report": report,
        "written": written,
        "numbers": [
            ("points", f"{report.num_points:,}"), ("budget, FLOPs", f"{report.budget:.3g}"),
            ("best parameters", f"{best.params:.3g}"), ("best tokens", f"{best.tokens:.3g}"),
            ("predicted loss", f"{best.loss:.4f}"), ("N grows as C^", f"{report.chosen.size_exponent:.3f}"),
        ],
        "cautions": [(caution.kind.replace("_", " "), caution.words) for caution in report.cautions],
        "tables": [
            ("Laws", "L = E + A / N^alpha + B / D^beta for N parameters and D tokens; C are training FLOPs.", LAW_HEAD,
             law_rows(report)),
            ("The budget's best spending", f"Of {report.budget:.4g} FLOPs.", OPTIMUM_HEAD, optimum_rows(report)),
            ("Shapes", "By the rule of shape, FLOPs counted for each; the arrow marks the lowest loss.", SHAPE_HEAD,
             shape_rows(report)),
            ("Parabolas", "Lowest points at equal compute, and how far each is from the middle of its grid, in halves "
             "of the grid's width.", PARABOLA_HEAD, parabola_rows(report)),
        ],
        "powers": power_words(report),
        "charts": charts,
    }  # fmt: skip
    return render("fit.html.j2", values, __package__)
