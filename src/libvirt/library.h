// The functions of libvirt's C API that are used here (https://libvirt.org/html/), found in libvirt.so.0 when a libvirt
// host is opened: who has no libvirt can still work on directories, and commands that need none don't wait while its
// thirty libraries are loaded.
#pragma once

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "base/result.h"

namespace varve::libvirt {

#define VARVE_LIBVIRT_FUNCTIONS(X)    \
  X(virInitialize)                    \
  X(virSetErrorFunc)                  \
  X(virGetLastError)                  \
  X(virResetLastError)                \
  X(virConnectOpenAuth)               \
  X(virConnectClose)                  \
  X(virConnectIsAlive)                \
  X(virConnectGetURI)                 \
  X(virConnectGetLibVersion)          \
  X(virConnectListAllDomains)         \
  X(virDomainLookupByName)            \
  X(virDomainGetName)                 \
  X(virDomainGetXMLDesc)              \
  X(virDomainGetState)                \
  X(virDomainIsActive)                \
  X(virDomainHasManagedSaveImage)     \
  X(virDomainDefineXML)               \
  X(virDomainUndefineFlags)           \
  X(virDomainFree)                    \
  X(virDomainListAllCheckpoints)      \
  X(virDomainGetJobStats)             \
  X(virDomainAbortJob)                \
  X(virDomainFSThaw)                  \
  X(virDomainAgentSetResponseTimeout) \
  X(virTypedParamsGetULLong)          \
  X(virTypedParamsFree)               \
  X(virDomainSnapshotNum)             \
  X(virDomainListAllSnapshots)        \
  X(virDomainSnapshotListAllChildren) \
  X(virDomainSnapshotNumChildren)     \
  X(virDomainSnapshotLookupByName)    \
  X(virDomainSnapshotCurrent)         \
  X(virDomainSnapshotGetName)         \
  X(virDomainSnapshotGetXMLDesc)      \
  X(virDomainSnapshotCreateXML)       \
  X(virDomainSnapshotDelete)          \
  X(virDomainRevertToSnapshot)        \
  X(virDomainSnapshotFree)            \
  X(virStorageVolLookupByPath)        \
  X(virStorageVolLookupByName)        \
  X(virStorageVolGetName)             \
  X(virStorageVolGetPath)             \
  X(virStorageVolFree)                \
  X(virStoragePoolLookupByName)       \
  X(virStoragePoolLookupByVolume)     \
  X(virStoragePoolGetName)            \
  X(virStoragePoolFree)

struct Library {
#define VARVE_LIBVIRT_MEMBER(name) decltype(&::name) name = nullptr;
  VARVE_LIBVIRT_FUNCTIONS(VARVE_LIBVIRT_MEMBER)
#undef VARVE_LIBVIRT_MEMBER
  decltype(&::virConnectAuthPtrDefault) default_authentication = nullptr;
};

// kUnsupported where there is no libvirt, or one that lacks a function. It stays loaded until the process ends.
Result<Library> load_library();

}  // namespace varve::libvirt
