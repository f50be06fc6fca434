"""The probabilities as a structured report: TID 1500 "Imaging Measurement Report" in a Comprehensive 3D SR (DICOM PS3.16).

One measurement group (TID 1501) for the cervical spine and for each level. There is no standard concept for the probability
of a fracture; its code is formed like DCM 111047 "Probability of cancer". No group has a Finding: a reader that shows
findings alone would show a fracture where there is a small probability of one.
"""

from collections.abc import Mapping, Sequence

from highdicom import sr as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from cache_schema.layout import LEVELS, TARGETS
from preprocess.results.filing import MAKER, VERSION, file_under
from preprocess.results.identifiers import Identifiers
from preprocess.results.key_slice import WARNING, KeySlice
from preprocess.results.source_image import EVEN_IF_EMPTY, SourceImage

SERIES_NUMBER = 9902
SCHEME = "99CSPINE"
PROBABILITY = hd.CodedConcept("probability", SCHEME, "Probability of fracture")
ASSESSMENT = hd.CodedConcept("assessment", SCHEME, "Assessment of fracture")
NETWORK = hd.CodedConcept("network", SCHEME, "Output of the networks, not calibrated")
CALIBRATED = hd.CodedConcept("calibrated", SCHEME, "Calibrated on held-out predictions")
RESEARCH_ONLY = f"{WARNING.capitalize()}. Research only, not a medical device."
SITES = {
    "patient_overall": codes.SCT.CervicalSpine,
    **{level: getattr(codes.SCT, f"{level}Vertebra") for level in LEVELS},
}
DIGITS = 6


def structured_report(
    key_slices: Sequence[KeySlice],
    sources: Sequence[SourceImage],
    filed_by: SourceImage,
    probabilities: Mapping[str, float | None],
    calibrated: Mapping[str, float],
    notes: Sequence[str],
    identifiers: Identifiers,
) -> Dataset:
    """sources: of each key slice. filed_by: gives patient, study and date, and is the evidence where there is no key slice."""
    groups = []
    for number, target in enumerate(TARGETS):
        images = [source for each, source in zip(key_slices, sources, strict=True) if each.level == target]
        value, better = probabilities.get(target), calibrated.get(target)
        groups.append(_group(number, target, value, better, images, identifiers))
    report = hd.MeasurementReport(
        observation_context=_observer(),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    for text in (RESEARCH_ONLY, *notes):
        report[0].ContentSequence.append(
            hd.TextContentItem(codes.DCM.Comment, _ascii(text), hd.RelationshipTypeValues.CONTAINS)
        )
    document = hd.Comprehensive3DSR(
        evidence=[_evidence(source) for source in sources or [filed_by]],
        content=report,
        series_instance_uid=identifiers.uid("SR series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identifiers.uid("SR"),
        instance_number=1,
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="cspine", version=VERSION)],
        series_description=f"cspine probabilities, {WARNING.lower()}",
        **MAKER,
    )
    file_under(document, filed_by)
    # type 1; the study's own moment, since a clock would make another file of the same results
    document.ContentDate, document.ContentTime = DA(filed_by.moment[0]), TM(filed_by.moment[1])
    return document


def _group(
    number: int,
    target: str,
    value: float | None,
    calibrated: float | None,
    images: Sequence[SourceImage],
    identifiers: Identifiers,
) -> hd.MeasurementsAndQualitativeEvaluations:
    given = [(NETWORK, value), (CALIBRATED, None if value is None else calibrated)]
    return hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(identifiers.uid("SR group", number), target),
        algorithm_id=hd.AlgorithmIdentification(
            "cspine", VERSION, [f"models {identifiers.models_digest}"], manufacturer="cspine"
        ),
        finding_sites=[hd.FindingSite(SITES[target])],
        measurements=[
            hd.Measurement(PROBABILITY, round(float(each), DIGITS), codes.UCUM.NoUnits, method=method)
            for method, each in given
            if each is not None
        ],
        qualitative_evaluations=[hd.QualitativeEvaluation(ASSESSMENT, codes.SCT.NotEvaluated)] * (value is None),
        source_images=[
            hd.SourceImageForMeasurementGroup(
                each.sop_class, each.sop_uid, None if each.frame is None else [each.frame]
            )
            for each in images
        ],
    )


def _observer() -> hd.ObservationContext:
    device = hd.DeviceObserverIdentifyingAttributes(
        uid=Identifiers("", "", VERSION).uid("device"),
        name="cspine",
        manufacturer_name="cspine",
        model_name="cspine",
    )
    return hd.ObservationContext(observer_device_context=hd.ObserverContext(codes.DCM.Device, device))


def _evidence(source: SourceImage) -> Dataset:
    """What highdicom asks of an image; it checks the patient's attributes by stricter rules than archives do, so that they
    come by `file_under` instead."""
    evidence = Dataset()
    for keyword in EVEN_IF_EMPTY:
        setattr(evidence, keyword, "" if keyword != "StudyInstanceUID" else source.filed_by.StudyInstanceUID)
    evidence.update(source.image)
    return evidence


def _ascii(text: str) -> str:
    """What every character set of DICOM holds: the source's stays, and with it the bytes of names."""
    return text.encode("ascii", "replace").decode()
