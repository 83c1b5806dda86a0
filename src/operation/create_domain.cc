#include "operation/create_domain.h"

#include <fmt/format.h>

#include "domain/names.h"
#include "operation/define_domain.h"
#include "operation/preflight.h"

namespace varve {

namespace {

// CentOS.qcow2, CentOS-2.qcow2, …
std::string default_path(const Host& host, const std::string& domain, size_t index, const std::string& format) {
  const std::string number = index == 0 ? "" : fmt::format("-{}", index + 1);
  return fmt::format("{}/{}{}.{}", host.images_directory(), domain, number, format == "raw" ? "img" : format);
}

void check_new(const Host& host, const NewImage& image, Preflight& preflight) {
  auto possible = image.check_free(host.layout());
  if (possible) return;
  Error error = std::move(possible).error();
  if (error.kind == ErrorKind::kAlreadyExists) {
    error.notes.push_back(fmt::format("`--disk {},format={}` attaches it, `--disk SIZE,path=OTHER` makes one elsewhere",
                                      image.path, image.format));
  }
  preflight.refuse(std::move(error));
}

}  // namespace

Result<Operation> plan_create_domain(Host& host, const CreateDomainRequest& request) {
  TRY(check_domain_name(request.name));
  TRY(host.check_writable());
  if (!request.disks.empty()) TRY(host.check_images_are_here());
  const std::string failure = fmt::format("domain '{}' is not created", request.name);
  DomainLock lock = TRY(host.lock(request.name, DomainLock::Mode::kExclusive));
  Operation operation(host, std::move(lock), request.name, fmt::format("create '{}'", request.name), failure);
  operation.set_command(fmt::format("vm create '{}'", request.name));

  Preflight preflight(failure);
  if (TRY(host.definitions().exists(request.name))) {
    preflight.refuse(make_error(ErrorKind::kAlreadyExists, "there is a domain of that name"));
  }
  NewDomain spec;
  spec.name = request.name;
  spec.uuid = new_uuid();
  spec.memory_bytes = request.memory_bytes;
  spec.vcpus = request.vcpus;
  spec.type = request.type;
  std::vector<NewImage> images;
  for (size_t i = 0; i < request.disks.size(); ++i) {
    const NewDiskRequest& disk = request.disks[i];
    const std::string path = disk.path.empty() ? default_path(host, request.name, i, disk.format) : disk.path;
    spec.disks.push_back({.source = path, .format = disk.format});
    if (disk.existing) {
      if (const auto found = host.layout().resolve(path); !found) preflight.refuse(found.error());
      continue;
    }
    images.push_back({.path = path, .format = disk.format, .options = disk.options});
    check_new(host, images.back(), preflight);
  }
  TRY(std::move(preflight).finish());
  const DomainDocument definition = TRY(DomainDocument::create(spec));
  operation.set_uuid(definition.uuid());
  for (NewImage& image : images) operation.add(std::move(image));
  operation.add({host.definitions().saving(definition)});
  return operation;
}

}  // namespace varve
