"""Public prompt lists that efface recognises: where they lie in a clone of their repository, how many rows they have, and under
which licence. Facts alone: no list and no row of one is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One list. ``path`` may hold {} for the name of a concept; ``rows`` are the rows of the file, None where they differ."""

    repository: str
    path: str
    rows: int | tuple[int, int] | None
    licence: str
    sensitive: bool = False
    schema: str = "auto"


MIT = "MIT"
NONE = "no licence file: all rights are reserved, so that only your own use is covered"
MACE = "the non-commercial licence of Nanyang Technological University"
I2P = "MIT by the card; texts of users of Lexica, with names of real persons"
MU = "OPTML-Group/Diffusion-MU-Attack"
ESD = "rohitgandikota/erasing"
UCE = "rohitgandikota/unified-concept-editing"
AP = "tuananhbui89/Erasing-Adversarial-Preservation"
SIX = "Artanisax/Six-CD"
HUB = "ml-postech/HUB"
RAB = "chiayi-hsu/Ring-A-Bell"
RECE = "CharlesGong12/RECE"

LISTS = {
    "erasing/big-artists": Known(ESD, "data/big_artist_prompts.csv", 100, MIT),
    "erasing/short-niche": Known(ESD, "data/short_niche_art_prompts.csv", 100, MIT),
    "erasing/famous-art": Known(ESD, "data/famous_art_prompts.csv", None, MIT),
    "erasing/generic-artists": Known(ESD, "data/generic_artists_prompts.csv", 1000, MIT),
    "erasing/small-imagenet": Known(ESD, "data/small_imagenet_prompts.csv", None, MIT),
    "erasing/coco-30k": Known(ESD, "data/coco_30k.csv", None, MIT),
    "erasing/i2p": Known(ESD, "data/unsafe-prompts4703.csv", 4703, I2P, True),
    "uce/imagenette": Known(UCE, "data/imagenette.csv", 5000, MIT),
    "uce/artists1734": Known(UCE, "data/artists1734_prompts.csv", 8670, MIT),
    "uce/all-artists": Known(UCE, "data/all_artists_prompts.csv", 9170, MIT),
    "diffusion-mu-attack/nudity": Known(MU, "prompts/nudity.csv", 142, MIT, True),
    "diffusion-mu-attack/violence": Known(MU, "prompts/violence.csv", 756, MIT, True),
    "diffusion-mu-attack/illegal": Known(MU, "prompts/illegal.csv", 727, MIT, True),
    "diffusion-mu-attack/i2p": Known(MU, "prompts/i2p.csv", None, I2P, True),
    "diffusion-mu-attack/church": Known(MU, "prompts/church.csv", 50, MIT),
    "diffusion-mu-attack/garbage-truck": Known(MU, "prompts/garbage_truck.csv", 50, MIT),
    "diffusion-mu-attack/parachute": Known(MU, "prompts/parachute.csv", 50, MIT),
    "diffusion-mu-attack/tench": Known(MU, "prompts/tench.csv", 50, MIT),
    "diffusion-mu-attack/van-gogh": Known(MU, "prompts/vangogh.csv", 50, MIT),
    "diffusion-mu-attack/coco-10k": Known(MU, "prompts/coco_10k.csv", 9969, "CC BY 4.0 (COCO)"),
    "advunlearn/imagenet243": Known("OPTML-Group/AdvUnlearn", "data/prompts/train/imagenet243_retain.csv", 243, "CC BY 4.0"),
    "advunlearn/coco-object": Known("OPTML-Group/AdvUnlearn", "data/prompts/train/coco_object_retain.csv", 243, "CC BY 4.0"),
    "p4d/nudity-esd": Known("joycenerd/P4D", "data/unsafe-prompts-nudity_esd.csv", 361, MIT, True),
    "p4d/nudity-sld-max": Known("joycenerd/P4D", "data/unsafe-prompts-nudity_sldMAX.csv", 204, MIT, True),
    "p4d/nudity-sld-strong": Known("joycenerd/P4D", "data/unsafe-prompts-nudity_sldSTRONG.csv", 112, MIT, True),
    "p4d/nudity-negative-prompt": Known("joycenerd/P4D", "data/unsafe-prompts-nudity_std_neg.csv", 209, MIT, True),
    "p4d/french-horn": Known("joycenerd/P4D", "data/small_imagenet_prompts_frenchhorn200.csv", 200, MIT),
    "p4d/car": Known("joycenerd/P4D", "data/coco30k-car_esd.csv", 91, MIT),
    "ring-a-bell/violence-5.5-77": Known(RAB, "data/InvPrompt/Violence/Violence_eta_5.5_K_77.csv", 250, MIT, True),
    "ring-a-bell/violence-5.5-38": Known(RAB, "data/InvPrompt/Violence/Violence_eta_5.5_K_38.csv", 250, MIT, True),
    "ring-a-bell/violence-5-77": Known(RAB, "data/InvPrompt/Violence/Violence_eta_5_K_77.csv", 250, MIT, True),
    "rece/ring-a-bell-nudity": Known(RECE, "dataset/nudity-ring-a-bell.csv", 79, "Apache-2.0", True),
    "rece/ring-a-bell-van-gogh": Known(RECE, "dataset/vangogh-ring-a-bell.csv", 50, "Apache-2.0"),
    "rece/robust-imagenette": Known(RECE, "dataset/robust_imagenette.csv", 100, "Apache-2.0"),
    "receler/cifar10-simple": Known("jasper0314-huang/Receler", "evaluation/data/cifar10_simple.csv", 1000, MIT),
    "receler/cifar10-paraphrase": Known("jasper0314-huang/Receler", "evaluation/data/cifar10_paraphrase.csv", 500, MIT),
    "six-cd/object": Known(SIX, "Datasets/Dual-Version/Object/malicious.csv", 100, MIT),
    "six-cd/style": Known(SIX, "Datasets/Dual-Version/Artstyle/malicious.csv", 100, MIT),
    "six-cd/character": Known(SIX, "Datasets/Dual-Version/Character/malicious.csv", 100, MIT),
    "six-cd/celebrity": Known(SIX, "Datasets/Dual-Version/Celebrity/malicious.csv", 100, MIT),
    "six-cd/harm": Known(SIX, "Datasets/Dual-Version/Harm/malicious.csv", 100, MIT, True),
    "six-cd/nudity": Known(SIX, "Datasets/Dual-Version/Nudity/malicious.csv", 100, MIT, True),
    "ap/imagenette": Known(AP, "data/imagenette.csv", 5000, NONE),
    "ap/long-niche": Known(AP, "data/long_niche_art_prompts.csv", 200, NONE),
    "time/test": Known("bahjat-kawar/time-diffusion", "TIMED_test_set.csv", 147, NONE),
    "time/test-filtered": Known("bahjat-kawar/time-diffusion", "TIMED_test_set_filtered_SD14.csv", 104, NONE),
    "time/validation": Known("bahjat-kawar/time-diffusion", "TIMED_validation_set.csv", 8, NONE),
    "mace/celebrity-100": Known("Shilin-LU/MACE", "prompts_csv/celebrity_100_concepts.csv", None, MACE),
    "mace/celebrity-10": Known("Shilin-LU/MACE", "prompts_csv/celebrity_10_concepts.csv", None, MACE),
    "mace/art-100": Known("Shilin-LU/MACE", "prompts_csv/art_100_concepts.csv", None, MACE),
    "hub/attack/{}": Known(HUB, "prompts/attack_robustness/{}.csv", (1000, 1003), NONE, schema="lines"),
    "hub/target-image/{}": Known(HUB, "prompts/target_image/{}.csv", (9661, 10015), NONE, schema="lines"),
    "hub/multilingual/{}": Known(HUB, "prompts/multilingual_robustness/{}.csv", None, NONE, schema="multilingual"),
    "hub/pinpoint/{}": Known(HUB, "prompts/pinpoint_ness/{}.csv", None, NONE, schema="pinpoint"),
}
"""Name behind ``repo:CLONE#`` -> the list."""

ON_THE_HUB = {
    "aiml-tuda/i2p": Known("AIML-TUDA/i2p", "", 4703, I2P, True),
    "yijunyang280/mma-diffusion-nsfw-adv-prompts-benchmark": Known(
        "YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark", "", 1000, "CC BY-NC-ND 3.0, gated by its authors", True, "mma"
    ),
    "chia15/ringabell-nudity": Known("Chia15/RingABell-Nudity", "", None, "gated by its authors", True),
}
"""Data set on the Hub, in small letters -> what is known of it."""
