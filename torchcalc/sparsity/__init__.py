"""What exact zeros are worth: where they are, and models without them."""

from torchcalc.sparsity._compact import compact
from torchcalc.sparsity._report import LayerReport, Report, report
from torchcalc.sparsity._semi_structured import to_semi_structured

__all__ = ["LayerReport", "Report", "compact", "report", "to_semi_structured"]
