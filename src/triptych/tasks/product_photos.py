"""Words in the names of product photos that say what a photo shows besides the panels of a task."""

from __future__ import annotations

_SIDE_WORDS = """
side sideview left right profile seite seitlich côté cote lado lateral angle threequarter 侧面 側面
"""
_PART_WORDS = """
detail details closeup closeups macro zoom swatch swatches fabric texture label labels hangtag tag
carelabel care sizechart sizeguide sizetable measurement measurements packaging lining inside inner
detailansicht nahaufnahme etikett größentabelle groessentabelle masstabelle stoff détail détails
étiquette etiquette tissu detalle detalles etiqueta tela dettaglio etichetta 细节 細節 细节图
吊牌 面料 尺码 尺码表
水洗标
詳細
"""

SIDE = frozenset(_SIDE_WORDS.split())
"""A garment from the side."""
PART = frozenset(_PART_WORDS.split())
"""A part of a garment, its material, or a table about it."""
