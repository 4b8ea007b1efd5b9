"""Does the document's response light up the layer that knows harmful from safe outputs as the harmful ones do?"""

import numpy as np
from numpy.typing import NDArray

from datablame.attribute.evidence.layers import BestLayerCosines
from datablame.attribute.registry import Evidence, method


@method("activation-best-layer", needs=(BestLayerCosines,))
def activation_best_layer(evidence: Evidence) -> NDArray[np.float64]:
    """cos(h_d, h_q) over responses, averaged over the queries, at the layer whose probe has the largest held-out AUC.

    Layers are judged by outputs to attribution prompts, never by documents. No score where no layer's AUC is above
    chance.
    """
    cosines, layers = evidence[BestLayerCosines]
    columns = []
    for behaviour, column, (layer, aucs) in zip(evidence.behaviours, cosines.T, layers, strict=True):
        for number, auc in enumerate(aucs):
            evidence.report(f"held-out AUC at layer {number}", auc, behaviour.id)
        if layer is not None:
            evidence.report("layer", layer, behaviour.id)
            columns.append(column)
        elif aucs:
            columns.append(evidence.no_score(behaviour, "no layer tells harmful from safe outputs better than chance"))
        else:
            columns.append(evidence.no_score(behaviour, "fewer than two harmful or two safe outputs"))
    return np.stack(columns, 1)
