"""Whether a text speaks of a minor. Pure, and never to be configured.

No sexual content that involves minors may be drawn, and public prompt lists hold such texts: of the 142 prompts of
UnlearnDiffAtk's list of nudity, 17 match a table of this kind. So every list from outside goes through :func:`minor`, the
prompts and the texts that they were optimised for alike, and so does everything that is asked of a model for a sensitive
target. A text that is left out wrongly ("a school of fish") costs one prompt, and the opposite mistake must not happen. No
option changes anything about it.

The languages are those of the multilingual attack (English, Spanish, French, German, Italian, Portuguese, Chinese, Japanese,
Arabic), and four more. Words, spelled-out ages and ages in digits below 18 are found in the disguises of
:mod:`efface.concepts.disguise`. What it cannot find: a minor who is described without any of the words, a name, another language,
and a text that an optimisation made, which is why such texts are refused without the text they were made for.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .disguise import Words, folded

MINORS = {
    "English": """
        *child* children kid kids kiddo* kiddie* *toddler* infant infants infantile baby babies babyish newborn*
        boy boys boyish *girl* teen teens teener* *teenage* teeny teenie* tween tweens tweenie* *preteen*
        *underage* minor minors juvenile* adolescen* *school* kindergarten* nursery youth youths youthful
        youngster* loli lolis *lolita* lolicon* shota* jailbait* nymphet* *pubescen* puberty daughter daughters
        stepdaughter* niece nieces nephew* lad lads lass lasses lassie* ageplay* ddlg *barelylegal* youngling*
        foetus* littleone babyboy *stepson* granddaughter* grandson*""",
    "Spanish": """
        nino ninos nina ninas ninito* ninita* ninez chico chicos chica chicas chiquill* chaval* muchach* nene
        nenes nena nenas bebe bebes infante infantil* infancia menor menores adolescen* quinceaner* escuela*
        escolar* colegio* colegial* alumn* puber* hija hijas hijo hijos crio crios cria lolita* mocos* jovencit*
        parvul* pequenin* guarderia*""",
    "French": """
        enfant* fille filles fillette* garcon* gamin* gosse gosses bebe bebes nourrisson* ado ados adolescen*
        mineur* ecole* ecolier* lycee* lyceen* collegien* puber* mome momes bambin* petiote* jouvencelle*
        maternelle* creche*""",
    "German": """
        kinder* kindes kindlich* kindchen kleinkind* *kinder* madchen* maedchen* madel* maedel* junge jungen
        junges jungs bub buben bubi knabe* saugling* saeugling* baby babys teenie* teenager* jugendlich* jugend
        minderjahrig* minderjaehrig* schule schulen schuler* schueler* *schulmad* *schulmaed* *schulkind*
        schulhof* tochter toechter sohn sohne neugeboren* halbwuchsig* pubertat* pubertaer* grundschul*
        gymnasiast*""",
    "Italian": """
        bambin* bimbo bimbi bimba bimbe ragazz* fanciull* neonat* minore minori minorenn* adolescen* scuola
        scuole scolar* scolaret* liceal* figlia figlie figlio figli pupo infante infantil* giovanett* giovinett*
        asilo puber* lattante*""",
    "Portuguese": """
        crianca* criancinha* menino* menina* garoto* garota* rapaz rapazes rapariga* bebe bebes nenem* menor
        menores adolescen* escola* escolar* colegial* aluna* aluno* filha* filho* infant infantil* miudo* miuda*
        moleque* novinha* novinho* guri guria gurizinh* puber* mocinha* creche*""",
    "Chinese": """
        儿童 兒童 孩子 孩童 小孩 未成年 少女 少年 女孩 男孩 女童 男童 幼女 幼童 幼儿 幼兒
        婴儿 嬰兒 婴幼 嬰幼 学生 學生 学校 學校 小学 小學 中学 中學 初中 高中 国中 國中 萝莉
        蘿莉 正太 宝宝 寶寶 娃娃 幼稚园 幼稚園 幼儿园 小朋友 未满十八 未滿十八 小妹妹 小弟弟
        小女生 小男生 童女 童男 女儿 女兒 儿子 兒子""",
    "Japanese": """
        子供 子ども こども コドモ 児童 未成年 少女 少年 女の子 男の子 赤ちゃん 赤ん坊 幼児 幼女
        幼稚園 小学 中学 高校 女子高生 女子校生 園児 生徒 学生 学校 ロリ ショタ ティーン 10代
        十代 ガール 娘 息子 ベビー キッズ チャイルド""",
    "Arabic": """
        طفل* اطفال* الطفل* الاطفال* طفول* ولد اولاد الولد الاولاد بنت بنات البنت البنات فتاه الفتاه فتيات
        الفتيات فتي الفتي فتيان صبي* الصبي* قاصر* القاصر* مراهق* المراهق* رضيع* الرضيع* تلميذ* التلميذ* طالب*
        الطالب* مدرسه المدرسه مدرسيه روضه الروضه ابنه ابنته الابنه صغيره صغيرات غلام غلمان""",
    "Russian": """
        ребен* ребят* дети детей детям детьми детск* детств* девочк* девчон* девчуш* мальчи* малыш* младен*
        подрост* несовершеннолет* малолет* школ* школьн* дочь дочк* дочер* сын сынок сынишк* ученик* ученица
        юноша юный юная""",
    "Korean": """
        어린이 아이들 어린아이 소녀 소년 미성년 아기 유아 청소년 학생 여고생 남고생 여중생 초등
        중학 고등학 학교 꼬마 10대 십대 딸 아들 여자아이 남자아이 로리 쇼타""",
    "Dutch": """
        kinderen kindje* meisje* meid meiden jongen* jongetje* tiener* minderjarig* peuter* kleuter* puber*
        zuigeling* scholier* dochter* zoontje* basisschool*""",
    "Polish": """
        dzieck* dzieci* dziewczyn* dziewcze* chlopiec chlopc* niemowl* nastolat* nieletn* maloletn* szkol*
        uczennic* uczen corka corki corecz* przedszkol*""",
}
"""Words for minors by language, and words for places and roles that are theirs."""

SPELLED = {
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    "uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete",
    "un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept",
    "ein zwei drei vier funf fuenf sechs sieben acht neun zehn elf zwolf zwoelf dreizehn vierzehn funfzehn sechzehn siebzehn",
    "due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette",
    "dois duas tres quatro sete oito dez doze treze catorze quatorze quinze dezesseis dezasseis dezessete dezassete",
    "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七",
}
_SPELLED = "|".join(sorted((folded(w) for row in SPELLED for w in row.split()), key=len, reverse=True))
_UNDER = rf"(?:1[0-7]|0?[0-9]|{_SPELLED})"
_GAP = r"[\W_]*"
AGES = re.compile(
    rf"(?<![\w.]){_UNDER}{_GAP}(?:y{_GAP}o\b|yrs?{_GAP}old|years?{_GAP}old|years?{_GAP}of{_GAP}age|jahr(?:e|ig)|jaehrig|anos?\b|ans\b"
    rf"|anni\b|months?{_GAP}old|weeks?{_GAP}old|سن|عام|лет\b|года?\b)"
    rf"|(?<![0-9]){_UNDER}{_GAP}(?:岁|歲|歳|才|살|세)"
    rf"|\b(?:age|aged|turns|turning){_GAP}(?:of{_GAP})?{_UNDER}\b"
    rf"|(?:\b(?:under|below|unter|moins{_GAP}de|menos{_GAP}de|meno{_GAP}di|sotto{_GAP}i|younger{_GAP}than)|<){_GAP}"
    rf"(?:the{_GAP})?(?:age{_GAP})?(?:of{_GAP})?(?:18|1[0-7]|eighteen|dieciocho|dix-huit|achtzehn|diciotto|dezoito)\b"
    rf"|\b(?:very|so|too|extremely|looks?|looking){_GAP}young\b|\byoung{_GAP}looking\b"
    rf"|\b(?:sweet{_GAP}(?:16|sixteen)|barely{_GAP}legal|not{_GAP}(?:yet{_GAP})?(?:18|legal)\b)"
)
"""An age below 18 in digits or words."""
AGE = "an age below 18"
_TEENS = Words({"English": "thirteen* fourteen* fifteen* sixteen* seventeen*"})
_WORDS = Words(MINORS)
GERMAN = frozenset(
    ("das", "ein", "eine", "einem", "kleines", "mit", "und", "der", "im", "dem", "nackt", "het", "een", "met", "van")
)
ENGLISH = frozenset(("a", "the", "of", "and", "with", "is", "to", "on", "her", "his", "very", "some", "any", "that", "this"))
"""Words by which "kind", a child in German and Dutch, is told from the English word."""


@lru_cache(maxsize=1 << 16)
def minor(text: str) -> str | None:
    """What in the text speaks of a minor: a word of the table, or "an age below 18"; None where nothing does."""
    plain = folded(text)
    if AGES.search(plain) or (_TEENS.find(text) and re.search(r"old|age|girl|boy|year", plain)):
        return AGE
    words = frozenset(re.findall(r"[^\W\d_]+", plain))
    if "kind" in words and (words & GERMAN or not words & ENGLISH):
        return "kind"
    return _WORDS.find(text)


def language_of(word: str) -> str:
    """The language of a word that :func:`minor` returned, "ages" for an age."""
    return "ages" if word == AGE else "German" if word == "kind" else _WORDS.language.get(word, "English")
