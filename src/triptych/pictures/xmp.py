"""How a picture says that a model made it: the IPTC digital source type, in an XMP packet, beside the name of
the tool.

Property and values: IPTC Photo Metadata Standard, `Iptc4xmpExt:DigitalSourceType`, and the IPTC NewsCodes
vocabulary http://cv.iptc.org/newscodes/digitalsourcetype/.
"""

from __future__ import annotations

from typing import Literal

Source = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Made wholly by a trained model; or a composite of a model's pixels and others, as an edited photo is."""


TOOL = "<xmp:CreatorTool>triptych</xmp:CreatorTool>"


def packet(source: Source) -> bytes:
    """The XMP packet (UTF-8) for a PNG's or JPEG's metadata."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/">{TOOL}'
        f"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{source}</Iptc4xmpExt:DigitalSourceType>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()
