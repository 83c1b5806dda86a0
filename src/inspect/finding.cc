#include "inspect/finding.h"

namespace varve {

const char* name_of(Severity severity) {
  switch (severity) {
    case Severity::kNote:
      return "note";
    case Severity::kWarning:
      return "warning";
    case Severity::kError:
      return "error";
    case Severity::kUnknown:
      return "unknown";
  }
  return "";
}

const char* name_of(FindingKind kind) {
  switch (kind) {
    case FindingKind::kUnreadableDefinition:
      return "unreadable-definition";
    case FindingKind::kUnreadableMetadata:
      return "unreadable-metadata";
    case FindingKind::kMisnamedMetadata:
      return "misnamed-metadata";
    case FindingKind::kUnloadedMetadata:
      return "unloaded-metadata";
    case FindingKind::kMissingParent:
      return "missing-parent";
    case FindingKind::kParentCircle:
      return "parent-circle";
    case FindingKind::kSeveralCurrent:
      return "several-current";
    case FindingKind::kInterruptedMerge:
      return "interrupted-merge";
    case FindingKind::kMetadataOfNoDomain:
      return "metadata-of-no-domain";
    case FindingKind::kMissingPoint:
      return "missing-point";
    case FindingKind::kUnknownPoint:
      return "unknown-point";
    case FindingKind::kDamagedPoint:
      return "damaged-point";
    case FindingKind::kMissingFile:
      return "missing-file";
    case FindingKind::kOtherSize:
      return "other-size";
    case FindingKind::kUnreadableImage:
      return "unreadable-image";
    case FindingKind::kImageErrors:
      return "image-errors";
    case FindingKind::kImageLeaks:
      return "image-leaks";
    case FindingKind::kBrokenChain:
      return "broken-chain";
    case FindingKind::kNoFormat:
      return "no-format";
    case FindingKind::kAbsoluteLink:
      return "absolute-link";
    case FindingKind::kUnfinishedOperation:
      return "unfinished-operation";
    case FindingKind::kTemporaryFile:
      return "temporary-file";
    case FindingKind::kUnusedLock:
      return "unused-lock";
    case FindingKind::kNotExamined:
      return "not-examined";
  }
  return "";
}

}  // namespace varve
