"""Words in the names of product photos that say what a photo shows besides the panels of a task."""

from __future__ import annotations

_SIDE_WORDS = """
side sideview left right profile seite seitlich côté cote lado lateral angle threequarter 侧面 側面
"""
_DETAIL_WORDS = """
detail details closeup closeups macro zoom detailansicht nahaufnahme détail détails detalle detalles dettaglio
细节 細節 细节图 詳細
"""
_PART_WORDS = """
swatch swatches fabric texture label labels hangtag tag carelabel care sizechart sizeguide sizetable
measurement measurements packaging lining inside inner etikett größentabelle groessentabelle masstabelle
stoff étiquette etiquette tissu etiqueta tela etichetta 吊牌 面料 尺码 尺码表 水洗标
"""

SIDE = frozenset(_SIDE_WORDS.split())
"""A garment from the side."""
DETAIL = frozenset(_DETAIL_WORDS.split())
"""A part of a garment from near by."""
PART = DETAIL | frozenset(_PART_WORDS.split())
"""A part of a garment, its material, or a table about it."""
