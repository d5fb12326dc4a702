"""Tiny copies of every published dataset: file names and values written by hand.

Names and values come from the descriptions of the datasets, not from the presets' patterns, so
that a wrong pattern does not make the file that it then finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import geopandas
import numpy as np
import rasterio
from folders import PNG
from scenes import write_raster
from shapely.geometry import Point

Stored: TypeAlias = "int | tuple[int, int, int]"

WIDTH, HEIGHT = 96, 64
JPEG = PNG | {"driver": "JPEG", "quality": 100}
TIFF = {"crs": None, "transform": None}
CMYK = TIFF | {"photometric": "cmyk"}
LOCAL = 'LOCAL_CS["Unknown",UNIT["metre",1]]'


@dataclass
class Tree:
    """A dataset on disk.

    Attributes:
        files: Image to its label (None: there is none), below `root`.
        bands: Names in the order that models see, with the band of the file.
        stored: What labels hold, with the name of the class that it means (None: no class).
        splits: Images of each split, by the end of their path without suffix.
        domains: Images of some domains, likewise.
        label: `index`, `rgb`, `onehot` or `grey` (three equal bands).
        texts: Further text files.
        margin: What the reader cuts away, in a file of this small size.
    """

    root: str
    files: dict[str, str | None]
    stored: dict[Stored, str | None]
    splits: dict[str, list[str]]
    domains: dict[str, list[str]] = field(default_factory=dict)
    bands: tuple[str, ...] = ("red", "green", "blue")
    count: int = 0
    dtype: str = "uint8"
    label: str = "index"
    profile: dict[str, Any] = field(default_factory=dict)
    label_profile: dict[str, Any] = field(default_factory=lambda: dict(PNG))
    texts: dict[str, str] = field(default_factory=dict)
    margin: tuple[int, int, int, int] | None = None

    def write(self, folder: Path) -> Path:
        """Write all files and return the data root."""
        root = folder / self.root
        for number, (image, label) in enumerate(self.files.items()):
            place(root, image, self.samples(number), self.profile_of(image, self.profile))
            if label is not None:
                place(root, label, self.truth(), self.profile_of(label, self.label_profile))
        for name, text in self.texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return folder

    def profile_of(self, path: str, said: dict[str, Any]) -> dict[str, Any]:
        if path.endswith(".jpg"):
            return JPEG
        return dict(PNG) if path.endswith(".png") else TIFF | (said if said != PNG else {})

    def samples(self, number: int = 0) -> np.ndarray[Any, Any]:
        """Samples (C, H, W): band b of the file is about 20 b, so that their order shows."""
        count = self.count or len(self.bands)
        step = 20 if count < 10 else 7
        levels = np.arange(1, count + 1)[:, None, None] * step
        noise = np.random.default_rng(number).integers(0, 3, (1, HEIGHT, WIDTH))
        return (levels + noise).astype(self.dtype)

    def truth(self) -> np.ndarray[Any, Any]:
        """Return the content of a label file (bands, H, W): vertical stripes of all of `stored`."""
        values = list(self.stored)
        stripes = np.arange(WIDTH) * len(values) // WIDTH
        if self.label == "onehot":
            bands = np.zeros((7, HEIGHT, WIDTH), np.uint8)
            for index, value in enumerate(values):
                bands[int(value) - 1][:, stripes == index] = 255  # type: ignore[arg-type]
            return bands
        table = np.array(values, np.uint8).reshape(len(values), -1)
        rows = table[stripes].T[:, None].repeat(HEIGHT, 1)
        return rows.repeat(3, 0) if self.label == "grey" else rows

    def expected(self) -> list[str | None]:
        """Name the class of each column of a label."""
        names = list(self.stored.values())
        return [names[index] for index in np.arange(WIDTH) * len(names) // WIDTH]


def place(root: Path, path: str, samples: np.ndarray[Any, Any], profile: dict[str, Any]) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    if samples.shape[0] == 1 or profile.get("driver") not in ("PNG", "JPEG"):
        write_raster(root / path, samples, **profile)
    else:
        write_raster(root / path, samples, **profile | {"photometric": None})


def table(folder: Path, rows: dict[str, str]) -> None:
    """Write the split table of FLAIR-HUB: patch to its split."""
    folder.mkdir(parents=True, exist_ok=True)
    geopandas.GeoDataFrame(
        {"patch_id": list(rows), "split_1": list(rows.values())},
        geometry=[Point(0, i) for i in range(len(rows))],
        crs="EPSG:2154",
    ).to_file(folder / "GLOBAL_ALL_MTD_SPLIT.gpkg")


NIR = ("nir", "red", "green", "blue")
TEST_SCENE, OTHER_SCENE = "GF2_PMS1__L1A0001064454-MSS1", "GF2_PMS2__L1A0000564539-MSS2"
LAST_TEST = "GF2_PMS2__L1A0001821754-MSS2"
FBP = {0: None, 1: "industrial area", 11: "river", 24: "airport"}
ISPRS: dict[Stored, str | None] = {
    (255, 255, 255): "impervious surface", (0, 0, 255): "building", (0, 255, 255): "low vegetation",
    (0, 255, 0): "tree", (255, 255, 0): "car", (255, 0, 0): "clutter", (0, 0, 0): None,
    (250, 3, 2): "clutter",
}  # fmt: skip
STREET = {0: "road", 8: "vegetation", 18: "bicycle", 255: None}
LABEL_IDS = {0: None, 7: "road", 8: "sidewalk", 9: None, 21: "vegetation", 26: "car", 33: "bicycle"}


def fbp(images: str, suffix: str, label: str, **more: Any) -> Tree:
    scenes = (TEST_SCENE, LAST_TEST, OTHER_SCENE)
    return Tree(
        root="Five-Billion-Pixels",
        files={f"{images}/{scene}{suffix}": label.format(scene) for scene in scenes},
        splits={
            "train": [OTHER_SCENE], "val": [TEST_SCENE, LAST_TEST],
            "test": [TEST_SCENE, LAST_TEST], "all": list(scenes),
        },
        **more,
    )  # fmt: skip


def potsdam(folder: str, suffix: str, bands: tuple[str, ...]) -> Tree:
    return Tree(
        root="Potsdam",
        files={
            f"{folder}/top_potsdam_{tile}_{suffix}.tif":
            f"5_Labels_all_noBoundary/top_potsdam_{tile}_label_noBoundary.tif"
            for tile in ("2_10", "7_7", "2_13", "7_13")
        },
        bands=bands,
        label="rgb",
        stored=ISPRS,
        splits={
            "train": [f"top_potsdam_2_10_{suffix}", f"top_potsdam_7_7_{suffix}"],
            "val": [f"top_potsdam_2_13_{suffix}", f"top_potsdam_7_13_{suffix}"],
        },
    )  # fmt: skip


def flair(stored: dict[Stored, str | None], **more: Any) -> Tree:
    return Tree(
        root="flair",
        files={
            "flair_aerial_train/D006_2020/Z10_AU/img/IMG_000826.tif":
            "flair_labels_train/D006_2020/Z10_AU/msk/MSK_000826.tif",
            "flair_aerial_train/D004_2021/Z1_NN/img/IMG_000001.tif":
            "flair_labels_train/D004_2021/Z1_NN/msk/MSK_000001.tif",
            "flair_1_aerial_test/D022_2021/Z3_UN/img/IMG_077413.tif":
            "flair_1_labels_test/D022_2021/Z3_UN/msk/MSK_077413.tif",
            "flair_2_aerial_test/D015_2020/Z2_FA/img/IMG_093000.tif":
            "flair_2_labels_test/D015_2020/Z2_FA/msk/MSK_093000.tif",
        },
        count=5,
        stored=stored,
        profile={"crs": LOCAL, "transform": rasterio.Affine(0.2, 0, 9e5, 0, -0.2, 6.5e6)},
        label_profile={"crs": LOCAL, "transform": rasterio.Affine(0.2, 0, 9e5, 0, -0.2, 6.5e6)},
        splits={
            "train": ["IMG_000826"], "val": ["IMG_000001"], "test": ["IMG_077413"],
            "test2": ["IMG_093000"], "trainval": ["IMG_000826", "IMG_000001"],
        },
        domains={"d006_2020": ["IMG_000826"], "d022_2021": ["IMG_077413"]},
        **more,
    )  # fmt: skip


def salient(root: str, train: str, train_label: str, test: str, test_label: str) -> Tree:
    return Tree(
        root=root,
        files={train: train_label, train.replace("0001", "0002"): train_label.replace("1", "2"),
               test: test_label},
        stored={0: "background", 3: "background", 255: "salient object", 250: "salient object"},
        splits={"test": [test.rpartition(".")[0]]},
    )  # fmt: skip


def ohs(stored: dict[Stored, str | None]) -> Tree:
    names = {"tr": ("S1_0001", "T1_0002", "O7_0003"), "val": ("S1_0004",), "ts": ("T1_0005",)}
    return Tree(
        root="WHU_OHS",
        files={
            f"{part}/image/{name}.tif": f"{part}/label/{name}.tif"
            for part, several in names.items() for name in several
        },
        bands=tuple(f"b{number:02d}" for number in range(1, 33)),
        dtype="uint16",
        stored=stored,
        splits={
            "train": ["S1_0001", "T1_0002", "O7_0003"], "val": ["S1_0004"], "test": ["T1_0005"],
        },
        domains={"s": ["S1_0001", "S1_0004"], "t": ["T1_0002", "T1_0005"], "s1": ["S1_0001",
                 "S1_0004"], "o": ["O7_0003"]},
    )  # fmt: skip


def rescuenet(stored: dict[Stored, str | None]) -> Tree:
    return Tree(
        root="RescueNet",
        files={
            f"{part}/{part}-org-img/{name}.jpg": f"{part}/{part}-label-img/{name}_lab.png"
            for part, name in (("train", "10778"), ("val", "10794"), ("test", "10781"))
        },
        stored=stored,
        splits={"train": ["10778"], "val": ["10794"], "test": ["10781"]},
    )


TREES: dict[str, Tree] = {
    "fbp_gf2": fbp(
        "Image__8bit_NirRGB", ".tif", "Annotation__index/{}_24label.png", bands=NIR, stored=FBP,
        profile=CMYK, margin=(6, 5, 92, 60),
    ),
    "fbp_gf2_16bit": fbp(
        "Image_16bit_BGRNir", ".tiff", "Annotation__index/{}_24label.png",
        bands=("blue", "green", "red", "nir"), stored=FBP, dtype="uint16",
    ),
    "gid5": fbp(
        "Image__8bit_NirRGB", ".tif", "GID5/Annotation__index/{}_5label.png", bands=NIR,
        stored={0: None, 1: "built-up", 2: "farmland", 3: "forest", 4: "meadow", 5: "water"},
        profile=CMYK, margin=(6, 5, 92, 60),
    ),
    "fbp_cmegacities": Tree(
        root="C-megacities",
        files={
            f"Image__8bit_NirRGB/{stem}.tif": f"label_dense__color/{stem}_dense.tif"
            for stem in (
                "GF1_PMS1_E114.0_N30.5_20160328_L1A0001492006-MSS1",
                "20190713_032217_1003_3B_AnalyticMS_SR",
                "20190821_024714_84_1069_3B_AnalyticMS_SR",
                "T50TMK_20210929T030539", "T49QGF_20210218T025749",
            )
        },
        bands=NIR, profile=CMYK, label="rgb",
        stored={(0, 0, 0): None, (200, 0, 0): "industrial area", (250, 0, 150): "urban residential",
                (200, 150, 0): "airport"},
        splits={"test": [
            "GF1_PMS1_E114.0_N30.5_20160328_L1A0001492006-MSS1",
            "20190713_032217_1003_3B_AnalyticMS_SR", "20190821_024714_84_1069_3B_AnalyticMS_SR",
            "T50TMK_20210929T030539", "T49QGF_20210218T025749",
        ]},
        domains={
            "gf1_wuhan": ["GF1_PMS1_E114.0_N30.5_20160328_L1A0001492006-MSS1"],
            "ps_chengdu": ["20190713_032217_1003_3B_AnalyticMS_SR"],
            "ps_shanghai": ["20190821_024714_84_1069_3B_AnalyticMS_SR"],
            "s2_beijing": ["T50TMK_20210929T030539"], "s2_guangzhou": ["T49QGF_20210218T025749"],
        },
    ),
    "flair1_19": flair(
        {1: "building", 6: "coniferous", 13: "swimming pool", 19: "other"},
        bands=("red", "green", "blue", "nir", "ndsm"),
    ),
    "flair1_13": flair(
        {1: "building", 12: "plowed land", 13: "other", 18: "other", 19: "other"},
        bands=("red", "green", "blue", "nir", "ndsm"),
    ),
    "flair1_12": flair(
        {1: "building", 12: "plowed land", 13: None, 19: None},
        bands=("red", "green", "blue", "nir"),
    ),
    "flair_hub": Tree(
        root="FLAIR-HUB",
        files={
            f"{d}_AERIAL_RGBI/{roi}/{d}_AERIAL_RGBI_{roi}_{xy}.tif":
            f"{d}_AERIAL_LABEL-COSIA/{roi}/{d}_AERIAL_LABEL-COSIA_{roi}_{xy}.tif"
            for d, roi, xy in (
                ("D006-2020", "FF-S1-14", "5-5"), ("D006-2020", "FF-S1-14", "5-6"),
                ("D024047-2021", "UN-S2-3", "0-12"),
            )
        },
        bands=("red", "green", "blue", "nir"),
        stored={0: "building", 1: "greenhouse", 6: "water", 14: "brushwood", 15: None, 18: None},
        splits={"train": ["S1-14_5-5"], "val": ["S1-14_5-6"], "test": ["UN-S2-3_0-12"]},
        domains={"d006-2020": ["5-5", "5-6"], "d024047-2021": ["0-12"]},
    ),
    "loveda": Tree(
        root="LoveDA",
        files={
            "Train/Rural/images_png/0.png": "Train/Rural/masks_png/0.png",
            "Train/Urban/images_png/1366.png": "Train/Urban/masks_png/1366.png",
            "Val/Urban/images_png/3514.png": "Val/Urban/masks_png/3514.png",
            "Test/Rural/images_png/4191.png": None,
        },
        stored={0: None, 1: "background", 2: "building", 4: "water", 7: "agricultural"},
        splits={"train": ["images_png/0", "1366"], "val": ["3514"], "test": ["4191"],
                "trainval": ["images_png/0", "1366", "3514"]},
        domains={"rural": ["images_png/0", "4191"], "urban": ["1366", "3514"]},
    ),
    "openearthmap": Tree(
        root="OpenEarthMap_wo_xBD",
        files={
            "accra/images/accra_1.tif": "accra/labels/accra_1.tif",
            "tokyo/images/tokyo_3.tif": "tokyo/labels/tokyo_3.tif",
            "vienna/images/vienna_25.tif": "vienna/labels/vienna_25.tif",
            "rio/images/rio_7.tif": None,
        },
        stored={0: None, 1: "bareland", 5: "tree", 8: "building"},
        splits={"train": ["accra_1", "tokyo_3"], "val": ["vienna_25"], "test": ["rio_7"]},
        domains={"africa": ["accra_1"], "asia": ["tokyo_3"], "vienna": ["vienna_25"]},
        texts={"train.txt": "accra_1.tif\ntokyo_3.tif\n", "val.txt": "vienna_25.tif\n",
               "test.txt": "rio_7.tif\n", "joplin/labels/readme.txt": "xBD"},
    ),
    "potsdam_rgb": potsdam("2_Ortho_RGB", "RGB", ("red", "green", "blue")),
    "potsdam_irrg": potsdam("3_Ortho_IRRG", "IRRG", ("nir", "red", "green")),
    "potsdam_rgbir": potsdam("4_Ortho_RGBIR", "RGBIR", ("red", "green", "blue", "nir")),
    "vaihingen": Tree(
        root="Vaihingen",
        files={
            f"top/top_mosaic_09cm_area{number}.tif":
            f"top_mosaic_09cm_area{number}_noBoundary.tif" for number in (1, 37, 2, 38)
        },
        bands=("nir", "red", "green"), label="rgb", stored=ISPRS,
        splits={"train": ["area1", "area37"], "val": ["area2", "area38"]},
    ),
    "whu_ohs": ohs({0: None, 1: "paddy field", 13: "beach land", 24: "ocean"}),
    "whu_ohs7": ohs({0: None, 2: "farmland", 6: "forest", 9: "grassland", 14: "waterbody",
                     15: "built-up land", 23: "unused land", 24: "ocean"}),
    "casid": Tree(
        root="CASID",
        files={
            "SubMs/all_train/image/a_000.png": "SubMs/all_train/label/a_000-label.png",
            "SubMs/all_train/image/a_001.png": "SubMs/all_train/label/a_001-label.png",
            "SubMs/all_test/image/a_002.png": "SubMs/all_test/label/a_002-label.png",
            "TroMs/all_test/image/b_000.png": "TroMs/all_test/label_id/b_000-label.png",
            "subtropical_monsoon/region03_east_of_yilan/region03_east_of_yilan_000.png":
            "subtropical_monsoon/region03_east_of_yilan/region03_east_of_yilan_000-label.png",
        },
        stored={0: "background", 1: "building", 2: "forest", 3: "road", 4: "water"},
        splits={"test": ["a_002", "b_000"]},
        domains={"sub": ["a_000", "a_001", "a_002", "yilan_000"], "tms": ["b_000"]},
    ),
    "rescuenet": rescuenet({0: "background", 5: "building total destruction", 6: "vehicle",
                            7: "road clear", 8: "road blocked", 10: "pool"}),
    "rescuenet5": rescuenet({0: "clutter", 1: "clutter", 2: "building", 5: "building", 6: "car",
                             7: "impervious surface", 8: "impervious surface", 9: "vegetation"}),
    "orssd": salient("ORSSD", "train-images/0001.jpg", "train-labels/0001.png",
                     "test-images/0003.jpg", "test-labels/0003.png"),
    "eorssd": salient("EORSSD", "train/Image-train/0001.jpg", "train/GT-train/0001.png",
                      "test-images/0004.jpg", "test-labels/0004.png"),
    "orsi4199": salient("ORSI-4199", "trainset/images/0001.jpg", "trainset/gt/0001.png",
                        "testset/images/0005.jpg", "testset/gt/0005.png"),
    "cityscapes": Tree(
        root="cityscapes",
        files={
            f"leftImg8bit/{part}_leftImg8bit.png": label and f"gtFine/{part}_gtFine_labelIds.png"
            for part, label in (
                ("train/aachen/aachen_000000_000019", True),
                ("val/lindau/lindau_000001_000019", True),
                ("test/bonn/bonn_000002_000019", None),
            )
        },
        stored=LABEL_IDS,
        splits={"train": ["aachen_000000_000019_leftImg8bit"],
                "val": ["lindau_000001_000019_leftImg8bit"],
                "test": ["bonn_000002_000019_leftImg8bit"]},
        texts={"gtFine/train/aachen/aachen_000000_000019_gtFine_polygons.json": "{}"},
    ),
    "gtav": Tree(
        root="gta",
        files={f"images/{number}.png": f"labels/{number}.png"
               for number in ("00001", "00002", "24966")},
        stored=LABEL_IDS | {34: None},
        splits={"all": ["00001", "00002", "24966"]},
    ),
    "bdd100k": Tree(
        root="bdd100k",
        files={f"images/10k/{name}.jpg": f"labels/sem_seg/masks/{name}.png"
               for name in ("train/0004a4c0-d4dff0ad", "val/7d06fefd-f7be05a6")},
        stored=STREET,
        splits={"train": ["0004a4c0-d4dff0ad"], "val": ["7d06fefd-f7be05a6"]},
    ),
    "mapillary_cs19": Tree(
        root="mapillary",
        files={
            "training/images/__CRyFzoDOXn6unQ6a3DnQ.jpg":
            "cityscapes_trainIdLabel/train/label/__CRyFzoDOXn6unQ6a3DnQ.png",
            "validation/images/_1Gn_xkw7sa_i9GU4mkxxQ.jpg":
            "cityscapes_trainIdLabel/val/label/_1Gn_xkw7sa_i9GU4mkxxQ.png",
        },
        stored=STREET,
        splits={"train": ["__CRyFzoDOXn6unQ6a3DnQ"], "val": ["_1Gn_xkw7sa_i9GU4mkxxQ"]},
    ),
    "acdc": Tree(
        root="acdc",
        files={
            f"rgb_anon/{part}_rgb_anon.png": label and f"gt/{part}_gt_labelTrainIds.png"
            for part, label in (
                ("fog/train/GOPR0475/GOPR0475_frame_000041", True),
                ("night/val/GOPR0356/GOPR0356_frame_000324", True),
                ("snow/test/GOPR0122/GOPR0122_frame_000161", None),
            )
        },
        stored=STREET,
        splits={"train": ["frame_000041_rgb_anon"], "val": ["frame_000324_rgb_anon"],
                "test": ["frame_000161_rgb_anon"]},
        domains={"fog": ["frame_000041_rgb_anon"], "night": ["frame_000324_rgb_anon"]},
    ),
    "landcoverai": Tree(
        root="landcover.ai.v1",
        files={f"images/{name}.tif": f"masks/{name}.tif"
               for name in ("M-33-20-D-c-4-2", "N-34-97-C-b-1-2")},
        stored={0: "background", 1: "building", 2: "woodland", 3: "water", 4: "road"},
        splits={},
    ),
    "deepglobe_landcover": Tree(
        root="deepglobe",
        files={"train/119_sat.jpg": "train/119_mask.png", "train/266_sat.jpg": "train/266_mask.png",
               "valid/1001_sat.jpg": None, "test/1002_sat.jpg": None},
        label="rgb",
        stored={(0, 255, 255): "urban land", (250, 251, 3): "agriculture land",
                (255, 0, 255): "rangeland", (100, 200, 90): "forest land", (0, 0, 0): None,
                (255, 255, 255): "barren land"},
        splits={"valid": ["1001_sat"], "test": ["1002_sat"]},
    ),
    "inria_building": Tree(
        root="AerialImageDataset",
        files={
            "train/images/austin1.tif": "train/gt/austin1.tif",
            "train/images/austin15.tif": "train/gt/austin15.tif",
            "train/images/tyrol-w5.tif": "train/gt/tyrol-w5.tif",
            "train/images/tyrol-w36.tif": "train/gt/tyrol-w36.tif",
            "test/images/bellingham1.tif": None,
        },
        stored={0: "background", 255: "building"},
        splits={"train": ["austin15", "tyrol-w36"], "val": ["austin1", "tyrol-w5"],
                "test": ["bellingham1"]},
        domains={"austin": ["austin1", "austin15"], "tyrol-w": ["tyrol-w5", "tyrol-w36"]},
    ),
    "dynamicearthnet": Tree(
        root="DynamicEarthNet",
        files={
            "planet/31N/1311_3077_13/PF-SR/2018-01-01.tif":
            "labels/1311_3077_13/Labels/Raster/1311-2018_01_01.tif",
            "planet/31N/1311_3077_13/PF-SR/2018-02-01.tif":
            "labels/1311_3077_13/Labels/Raster/1311-2018_02_01.tif",
            "planet/31N/1311_3077_13/PF-SR/2018-02-02.tif": None,
            "planet/31N/1417_3281_13/PF-SR/2018-01-01.tif": None,
        },
        bands=("blue", "green", "red", "nir"), dtype="uint16", label="onehot",
        stored={1: "impervious surface", 2: "agriculture", 6: "water", 7: None},
        splits={},
        texts={
            "dynnet_training_splits/train.txt":
            "/planet/31N/1311_3077_13/PF-SR /labels/1311_3077_13/Labels/Raster/1311-2018_01_01.tif "
            "2018-01\n/planet/31N/1311_3077_13/PF-SR "
            "/labels/1311_3077_13/Labels/Raster/1311-2018_02_01.tif 2018-02\n",
            "dynnet_training_splits/test.txt":
            "/planet/31N/1417_3281_13/PF-SR /labels/1417/Labels/Raster/1417-2018_01_01.tif "
            "2018-01\n",
        },
    ),
    "dfc2020_s2": Tree(
        root="DFC2020",
        files={
            f"ROIs0000_{part}/s2_0/ROIs0000_{part}_s2_0_p{n}.tif":
            f"ROIs0000_{part}/dfc_0/ROIs0000_{part}_dfc_0_p{n}.tif"
            for part, n in (("validation", 0), ("validation", 6), ("test", 2))
        },
        bands=("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11",
               "B12"),
        dtype="uint16",
        stored={0: None, 1: "forest", 3: None, 7: "urban/built-up", 8: None, 10: "water"},
        splits={"test": ["ROIs0000_test_s2_0_p2"]},
    ),
    "whu_building": Tree(
        root="WHU_Building",
        files={
            "aerial/train/image/1.tif": "aerial/train/label2/1.tif",
            "aerial/test/image/2.tif": "aerial/test/label2/2.tif",
            "satellite/train_all/image/3.tif": "satellite/train_all/label/3.tif",
            "satellite/test_all/image/4.tif": "satellite/test_all/label/4.tif",
        },
        stored={0: "background", 1: "building", 255: "building"},
        splits={"test": ["image/2", "image/4"]},
        domains={"aerial": ["image/1", "image/2"], "satellite": ["image/3", "image/4"]},
    ),
    "roads_d2m": Tree(
        root=".",
        files={
            "DeepGlobe/train/104_sat.jpg": "DeepGlobe/train/104_mask.png",
            "DeepGlobe/train/131_sat.jpg": "DeepGlobe/train/131_mask.png",
            "DeepGlobe/valid/200_sat.jpg": None,
            "Massachusetts/tiff/train/10078660_15.tiff":
            "Massachusetts/tiff/train_labels/10078660_15.tif",
            "Massachusetts/tiff/val/10228690_15.tiff":
            "Massachusetts/tiff/val_labels/10228690_15.tif",
            "Massachusetts/tiff/test/10378780_15.tiff":
            "Massachusetts/tiff/test_labels/10378780_15.tif",
        },
        label="grey",
        stored={0: "background", 4: "background", 255: "road", 251: "road"},
        splits={"valid": ["10228690_15"], "test": ["10378780_15"], "withheld": ["200_sat"]},
        domains={"deepglobe": ["104_sat", "131_sat", "200_sat"],
                 "massachusetts": ["10078660_15", "10228690_15", "10378780_15"]},
    ),
}  # fmt: skip
"""Every dataset preset, by name."""


def write(name: str, folder: Path) -> Path:
    """Write the tree of a preset and return the data root."""
    TREES[name].write(folder)
    if name == "flair_hub":
        rows = {"D006-2020_FF-S1-14_5-5": "train", "D006-2020_FF-S1-14_5-6": "valid",
                "D024047-2021_UN-S2-3_0-12": "test"}  # fmt: skip
        table(folder / "FLAIR-HUB/GLOBAL_ALL_MTD", rows)
    return folder
