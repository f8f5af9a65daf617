"""Writes the pictures and data sets beside it, and what Pillow, NumPy and torchvision read of them.

python make.py, with Pillow 13, NumPy 2.4 and torchvision 0.29; torch itself is not needed and replaced by a mock.
"""
import copy, gzip, hashlib, importlib.machinery, importlib.util, io, os, pickle, shutil, sys, tarfile, tempfile, types
from unittest.mock import MagicMock
import numpy as np
from PIL import Image

here = os.path.dirname(os.path.abspath(__file__))


class NoTorch:
    """Lets torchvision's data sets be imported without torch."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        if spec.name == "torch.utils.data":
            module.Dataset = type("Dataset", (), {"__class_getitem__": classmethod(lambda cls, item: cls)})
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, NoTorch())
root = os.path.join(os.path.dirname(importlib.util.find_spec("PIL").origin), "..", "torchvision")
for name, path in [("torchvision", root), ("torchvision.datasets", root + "/datasets")]:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from torchvision.datasets import cifar, folder, gtsrb

# --- pictures
y, x = np.mgrid[0:19, 0:23]
SMOOTH = np.stack([x * 255 // 22, y * 255 // 18, (x + y) * 255 // 40], -1).astype(np.uint8)
ALPHA = np.dstack([SMOOTH, (x * 11).astype(np.uint8)])
I = Image.fromarray
exif = Image.Exif()
exif[0x0112] = 6
pictures = os.path.join(here, "pictures")
shutil.rmtree(pictures)
os.makedirs(pictures)
for name, image, how in [
    ("rgb.png", I(SMOOTH), {}), ("rgb.bmp", I(SMOOTH), {}), ("rgb.gif", I(SMOOTH), {}), ("rgb.ppm", I(SMOOTH), {}),
    ("lossless.webp", I(SMOOTH), {"lossless": True}), ("alpha.webp", I(ALPHA), {"lossless": True, "exact": True}),
    ("lossy.webp", I(SMOOTH), {"quality": 80}), ("lossy-alpha.webp", I(ALPHA), {"quality": 80}),
    ("plain.tif", I(SMOOTH), {}), ("lzw.tif", I(SMOOTH), {"compression": "tiff_lzw"}),
    ("deflate.tif", I(SMOOTH), {"compression": "tiff_adobe_deflate"}), ("packbits.tif", I(SMOOTH), {"compression": "packbits"}),
    ("fax.tif", I(SMOOTH).convert("1"), {"compression": "group4"}), ("cmyk.tif", I(SMOOTH).convert("CMYK"), {}),
    ("grey.png", I(SMOOTH).convert("L"), {}), ("grey.pgm", I(SMOOTH).convert("L"), {}), ("bit.pbm", I(SMOOTH).convert("1"), {}),
    ("bit.png", I(SMOOTH).convert("1"), {}), ("palette.png", I(SMOOTH).convert("P"), {"transparency": 5}),
    ("palette.bmp", I(SMOOTH).convert("P"), {}), ("palette.gif", I(SMOOTH).convert("P"), {"transparency": 5}),
    ("alpha.png", I(ALPHA), {}), ("grey-alpha.png", I(ALPHA).convert("LA"), {}), ("key.png", I(SMOOTH), {"transparency": (0, 0, 0)}),
    ("turned.png", I(SMOOTH), {"exif": exif.tobytes()}), ("turned.jpg", I(SMOOTH), {"exif": exif.tobytes(), "quality": 95}),
    ("full-colour.jpg", I(SMOOTH), {"quality": 90, "subsampling": 0}), ("half-colour.jpg", I(SMOOTH), {"quality": 90, "subsampling": 2}),
    ("progressive.jpg", I(SMOOTH), {"quality": 90, "progressive": True}), ("restarts.jpg", I(SMOOTH), {"quality": 90, "restart_marker_blocks": 1}),
    ("grey.jpg", I(SMOOTH).convert("L"), {"quality": 90}), ("cmyk.jpg", I(SMOOTH).convert("CMYK"), {"quality": 95}),
    ("jpeg.tif", I(SMOOTH), {"compression": "jpeg"}),
]:
    image.save(os.path.join(pictures, name), **how)
frames = [I(np.roll(SMOOTH, k, 0)) for k in range(3)]
for name in ["frames.gif", "frames.webp", "frames.png", "pages.tif"]:
    frames[0].save(os.path.join(pictures, name), save_all=True, append_images=frames[1:], **({"lossless": True} if "webp" in name else {}))


def shown(image, size):
    return image.convert("RGB").resize((size, size), Image.BILINEAR)


with open(os.path.join(here, "pictures.tsv"), "w") as table:
    for name in sorted(os.listdir(pictures)):
        table.write(f"{name}\t{shown(Image.open(os.path.join(pictures, name)), 8).tobytes().hex()}\n")

# --- data sets
work = tempfile.mkdtemp()


def put(path, content):
    os.makedirs(os.path.dirname(os.path.join(work, path)), exist_ok=True)
    with open(os.path.join(work, path), "wb") as file:
        file.write(content)


def coded(image, format, **how):
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its texts, as the published batches have them."""

    dispatch = copy.copy(pickle._Pickler.dispatch)

    def save_text(self, value):
        short = len(value) < 256
        self.write((b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")) + value)
        self.memoize(value)

    dispatch[bytes] = save_text


def batch(number, protocol, **labels):
    rows = (np.arange(3)[:, None] * 50 + np.arange(3072)[None] // 16 + 7 * number).astype(np.uint8)
    content = {"batch_label": "some batch", "data": rows, **labels}
    if protocol not in ["python 2", "bytes"]:
        return pickle.dumps(content, protocol)
    content = {key.encode(): value.encode() if key == "batch_label" else value for key, value in content.items()}
    if protocol == "bytes":
        return pickle.dumps(content, 2)
    buffer = io.BytesIO()
    Python2(buffer, 2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
for k, (name, protocol) in enumerate(zip(names, ["python 2", 2, 3, 4, 5, "python 2"])):
    labels = [k, 9, (3 * k) % 10]
    put(f"cifar-10-batches-py/{name}", batch(k, protocol, labels=np.array(labels) if k == 3 else labels))
for k, name in enumerate(["train", "test"]):
    for path, protocol in [("", "python 2"), ("bytes/", "bytes")]:
        put(f"{path}cifar-100-python/{name}", batch(k, protocol, fine_labels=[99, k, 42], coarse_labels=[19, 3, 0]))
table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
for c in [0, 14, 42]:
    lines = table
    for t in range(2):
        for f in range(2):
            picture = np.roll(SMOOTH, c + 3 * t + f, 1)[: 17 + t]
            put(f"gtsrb/GTSRB/Training/{c:05}/{t:05}_{f:05}.ppm", coded(I(picture), "PPM"))
            lines += f"{t:05}_{f:05}.ppm;23;{17 + t};3;3;14;15;{c}\r\n"
    put(f"gtsrb/GTSRB/Training/{c:05}/GT-{c:05}.csv", lines.encode())
lines = table
for k, c in enumerate([42, 0, 7]):
    put(f"gtsrb/GTSRB/Final_Test/Images/{k:05}.ppm", coded(I(np.roll(SMOOTH, k, 0)), "PPM"))
    lines += f"{k:05}.ppm;23;19;3;3;14;15;{c}\r\n"
put("gtsrb/GT-final_test.csv", lines.encode())
k = 0
for path in ["train/b/2.PNG", "train/b/10.png", "train/b/site-b/1.bmp", "train/b/site/3.png", "train/b/site/deep/1.webp", "train/B/1.tif",
             "train/a/x.ppm", "train/a/é.png", "test/B/1.png", "test/a/1.png", "test/b/sub/1.png"]:
    k += 1
    format = {"png": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "ppm": "PPM"}[path.rsplit(".")[1].lower()]
    put("folder/" + path, coded(I(np.roll(SMOOTH, k, 1)), format, **({"lossless": True} if format == "WEBP" else {})))


def fingerprint(images, labels):
    return hashlib.sha256(b"".join(image.tobytes() for image in images) + bytes(int(label) for label in labels)).hexdigest()


class Unchecked:
    """Published files have published sums; these do not."""

    def _check_integrity(self):
        return True

    def _load_meta(self):
        pass


class Cifar10(Unchecked, cifar.CIFAR10):
    pass


class Cifar100(Unchecked, cifar.CIFAR100):
    pass


with open(os.path.join(here, "datasets.tsv"), "w") as sums:
    for name, make in [("cifar10", Cifar10), ("cifar100", Cifar100)]:
        for train in [True, False]:
            images = make(work, train=train)
            sums.write(f"{name}\t{'train' if train else 'test'}\t{fingerprint(images.data, images.targets)}\n")
    for split in ["train", "test"]:
        signs = gtsrb.GTSRB(work, split=split)
        # torchvision numbers the folders that are there, which are all 43 elsewhere; ours are three.
        number = {k: int(name) for k, name in enumerate(["00000", "00014", "00042"])} if split == "train" else {0: 0, 7: 7, 42: 42}
        images = [(shown(image, 32), number[label]) for image, label in signs]
        sums.write(f"gtsrb\t{split}\t{fingerprint(*zip(*images))}\n")
    for split in ["train", "test"]:
        images = [(shown(image, 8), label) for image, label in folder.ImageFolder(os.path.join(work, "folder", split), loader=Image.open)]
        sums.write(f"folder\t{split}\t{fingerprint(*zip(*images))}\n")
with open(os.path.join(here, "datasets.tar.gz"), "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as zipped:
    with tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for directory, folders, files in os.walk(work):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(directory, name)
                info = tarfile.TarInfo(os.path.relpath(path, work))
                info.size = os.path.getsize(path)
                with open(path, "rb") as content:
                    archive.addfile(info, content)
shutil.rmtree(work)
