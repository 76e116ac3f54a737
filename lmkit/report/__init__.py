"""Reports on trained models: what each costs, and what it is worth beside the dense one."""

from .efficiency import efficiency
from .results import EfficiencyReport, EfficiencyRow

__all__ = ["EfficiencyReport", "EfficiencyRow", "efficiency"]
