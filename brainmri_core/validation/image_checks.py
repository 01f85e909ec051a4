"""Checks of single images and their files."""

from __future__ import annotations

import numpy as np

from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import Finding, about_images

MAX_COLOURFULNESS = 12.0
MAX_ASPECT = 2.0


def unreadable(evidence: Evidence) -> Finding | None:
    """Every image could be decoded."""
    samples = evidence.samples
    before = evidence.expected_samples.set_index("path")["split"].reindex(samples["path"]).to_numpy(object)
    skipped = samples["reason"].str.startswith("extension not in")
    undecoded = samples["pixel_sha256"].eq("") | ((before != "excluded") & ~skipped)
    failed = evidence.excluded & undecoded.to_numpy(np.bool_)
    files = samples["path"][failed]
    reasons = samples["reason"][failed].value_counts()
    named = "; ".join(f"{n} x {reason}" for reason, n in reasons.head(3).items())
    return about_images(
        "unreadable", "warning", files, f"{{n}} could not be decoded and {{are}} left out ({named})."
    )


def left_out(evidence: Evidence) -> Finding | None:
    """No folder, ending or share of the images was left out on the way."""
    account = evidence.account
    if not account.surprises:
        return None
    message = (
        f"{len(account.missed)} files that may be images are left out: {', '.join(account.surprises)}. The table "
        "from the archive to the pack gives each reason and what to do."
    )
    return about_images("left_out", "warning", account.missed, message)


def wrong_size(evidence: Evidence) -> Finding | None:
    """The resized images have the expected size."""
    wanted, packed = evidence.config.size, evidence.pack.size
    if wanted is None or wanted == packed:
        return None
    message = (
        f"The pack holds images of {packed} x {packed} pixels, but validate.size is {wanted}; "
        "set resize.size and validate.size to the same number."
    )
    return about_images("wrong_size", "error", evidence.packed["path"], message)


def small_file(evidence: Evidence) -> Finding | None:
    """No file is suspiciously small."""
    least = evidence.config.min_file_bytes
    files = evidence.samples["path"][evidence.samples["bytes"] < least]
    return about_images("small_file", "warning", files, f"{{n}} {{are}} smaller than {least} bytes.")


def blank(evidence: Evidence) -> Finding | None:
    """No image is nearly constant, black or white."""
    packed, least = evidence.packed, evidence.config.warn_low_std
    low = packed["std"] < least
    extreme = (packed["mean"] < 2.0) | (packed["mean"] > 253.0)
    message = f"{{n}} {{are}} nearly one gray level (standard deviation below {least:g}) or almost all black or white."
    return about_images("blank", "warning", packed["path"][low | extreme], message)


def not_mri_like(evidence: Evidence) -> Finding | None:
    """No image looks like a photograph or screenshot."""
    packed = evidence.packed
    aspect = packed["width"] / packed["height"].clip(lower=1)
    odd = (aspect > MAX_ASPECT) | (aspect < 1 / MAX_ASPECT) | (packed["colourfulness"] > MAX_COLOURFULNESS)
    message = (
        f"{{n}} {{look}} unlike an MRI slice: colourful, or more than {MAX_ASPECT:g} times as long as wide. "
        "Photographs and screenshots do."
    )
    return about_images("not_mri_like", "warning", packed["path"][odd], message)


def mixed_depths(evidence: Evidence) -> Finding | None:
    """All images have the same number of bits."""
    packed = evidence.packed
    if "depth" not in packed.columns:
        return None
    counts = packed["depth"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    named = ", ".join(f"{n} of {depth}" for depth, n in counts.items())
    message = (
        f"The images come in different depths ({named}), so {{n}} {{were}} turned into gray levels in another way than "
        "most; see that depth does not go with the class, or bring all to one depth."
    )
    return about_images(
        "mixed_depths", "warning", packed["path"][packed["depth"] != counts.index[0]], message
    )


def burnt_in(evidence: Evidence) -> Finding | None:
    """No image has writing or a frame burnt in."""
    packed = evidence.packed
    rows = packed["row"].to_numpy(np.int64)
    text, frame = evidence.scan.text[rows], evidence.scan.framed[rows]
    message = (
        f"{{n}} {{have}} something burnt into the picture: {int(text.sum())} with writing in a corner, "
        f"{int(frame.sum())} with a frame or a line along an edge. A model can learn it, and writing can name a person."
    )
    return about_images("burnt_in", "warning", packed["path"][text | frame], message)


def embedded_metadata(evidence: Evidence) -> Finding | None:
    """No file carries metadata that could hold personal data."""
    packed = evidence.packed
    if "has_metadata" not in packed.columns:
        return None
    message = (
        "{n} {carry} EXIF, GPS, comments or similar, which may hold personal data; only pixels are carried on, "
        "but the original files still have it."
    )
    return about_images(
        "embedded_metadata", "warning", packed["path"][packed["has_metadata"].astype(bool)], message
    )
