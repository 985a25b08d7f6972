"""RAVEL over all of its targets: tables gathered over models and sites, representative layers, the widest target."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from inversescope.context import Context, need
from inversescope.figures.study import Study
from inversescope.store import read_json, read_table, write_table

#: Tables that are gathered over sites: stem -> folder of a model, and the rule that makes it.
BY_SITE = {
    "scores": ("attributes", "classify_attributes"),
    "bandwidth": ("bandwidth", "classify_attributes"),
    "saes": ("sae", "train_sae"),
}
#: Tables that are gathered over models: stem -> file.
BY_MODEL = {"refusal": "refusal.csv", "rates": "fcr.csv"}


class RavelStudy(Study):
    """All experiments on RAVEL.

    Attributes:
        contexts: of each experiment.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        models = [e.model for e in self.config.experiments.values() if e.task == context.task_name]
        self.contexts = [context.beside(model) for model in models]

    def gather(self) -> None:
        """Write results/ravel/{scores,bandwidth,saes,refusal,rates,targets}.csv, of all models.

        Raises:
            InputError: a table is missing; the message names the rule that makes it.
        """
        tables = {name: self._by_site(*where) for name, where in BY_SITE.items()}
        for name, file in BY_MODEL.items():
            parts = [read_table(need(one.results / file, "collect_tables")) for one in self.contexts]
            tables[name] = pd.concat(parts, ignore_index=True)
        tables["rates"] = tables["rates"][tables["rates"]["feature"] == "attribute"]
        tables["targets"] = self._targets()
        for name, rows in tables.items():
            write_table(rows, self.context.results.parent / f"{name}.csv")

    def _by_site(self, folder: str, rule: str) -> pd.DataFrame:
        parts = []
        for one in self.contexts:
            for site in one.plan.sites:
                rows = read_table(need(one.results / folder / f"{site.label}.csv", rule))
                parts.append(rows if "model" in rows else rows.assign(model=one.model_name, layer=site.layer))
        return pd.concat(parts, ignore_index=True)

    def _targets(self) -> pd.DataFrame:
        names = ["d_model", "n_layers", "accuracy", "accuracy_held_out"]
        rows = []
        for one in self.contexts:
            about = read_json(need(one.target_dir / "target.json", "select_target / fetch_target"))
            rows.append({"model": one.model_name} | {name: about.get(name) for name in names})
        return pd.DataFrame(rows).astype({"accuracy": float, "accuracy_held_out": float})

    def gathered(self, name: str) -> pd.DataFrame:
        """A table that `gather` wrote."""
        return self.table(f"../{name}.csv", "plot_ravel")

    @cached_property
    def representative(self) -> dict[str, list[int]]:
        """Model -> its representative layers (Table 2)."""
        return {
            one.model_name: one.plan.settings.representative or [site.layer for site in one.plan.sites]
            for one in self.contexts
        }

    @cached_property
    def alike(self) -> list[list[str]]:
        """Models by the bandwidth that they are read at."""
        groups: dict[str, list[str]] = {}
        for one in self.contexts:
            groups.setdefault(Study(one).bandwidth_label, []).append(one.model_name)
        return list(groups.values())

    @cached_property
    def widest(self) -> Study:
        """The target of the largest width."""
        targets = self.gathered("targets").set_index("model")["d_model"]
        return Study(max(self.contexts, key=lambda one: targets[one.model_name]))

    @property
    def shown_layers(self) -> list[int]:
        """First and last representative layer of the widest target."""
        layers = self.representative[self.widest.context.model_name]
        return list(dict.fromkeys([layers[0], layers[-1]]))

    def shown_site(self, layer: int) -> str:
        """Label of the widest target's site at a layer."""
        return next(site.label for site in self.widest.context.plan.sites if site.layer == layer)
