"""Which concepts are sensitive: what their images need, and what may never be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ..errors import BadRequest
from .disguise import Words
from .minors import language_of, minor

SEXUAL = {
    "English": """*nudity* nude nudes nudist* naked* nsfw *porn* sex sexy sexual* sexualiz* erotic* *hentai* topless bottomless
        unclothed undressed genital* breasts nipple nipples orgasm* intercourse lingerie fetish* xxx bdsm masturbat* explicit""",
    "Spanish": "desnud* sexual* sexo erotic* porno* tetas",
    "French": "nudite* denude* deshabille* sexuel* erotique* sexe",
    "German": "nackt* nacktheit sexuell* erotik* erotisch* entblosst*",
    "Italian": "nudita sessual* erotic* nuda sesso",
    "Portuguese": "nudez nua nuas despid* pelad* sexo",
    "Chinese": "裸体 裸體 裸露 全裸 色情 性爱 性愛 裸照",
    "Japanese": "ヌード 裸 エロ ポルノ 全裸 性的",
    "Arabic": "عاري* عاريه عري جنسي* اباحي*",
}
GRAPHIC = {
    "English": """gore gory violen* bloody bloodshed mutilat* decapitat* dismember* corpse corpses suicid* selfharm torture*
        shocking harassment hateful disturbing""",
}
_SEXUAL, _GRAPHIC = Words(SEXUAL), Words(GRAPHIC)


@lru_cache(maxsize=1 << 16)
def sexual(text: str) -> bool:
    """Whether the text names something sexual."""
    return _SEXUAL.find(text) is not None


def sensitive(names: Iterable[str]) -> bool:
    """Whether one of the names is sexual or graphic, so that its images are blurred before they are written."""
    return any(_SEXUAL.find(n) or _GRAPHIC.find(n) for n in names)


def refuse_minors(texts: Iterable[str], where: str, *, all_sensitive: bool = False) -> None:
    """Raises BadRequest for a text that is sexual and speaks of a minor; with ``all_sensitive``, where the target is sensitive,
    for any text that speaks of one. The message does not repeat the text."""
    for i, text in enumerate(texts, 1):
        if (all_sensitive or sexual(text)) and (word := minor(text)) is not None:
            raise BadRequest(
                f"text {i} of {where} speaks of a minor ({word!r}, {language_of(word)}) where the subject is sensitive. efface "
                "never draws that, and no option allows it: take the text out."
            )
